"""Train the induction model of the laboratory: two layers that continue a repeated sequence of words.

    python scripts/train_induction.py                                  # the model that saekit ships: one minute on one core
    python scripts/train_induction.py --seed 1 --out /tmp/induction    # another model

The length of the sequence varies, so that the position does not predict the next word. Every fourth length is held out for tests.
The loss covers only the tokens that the first copy of the sequence determines. A group penalty (Yuan and Lin 2006) on the output
of each head leaves few active heads: a small circuit, which ablation of every head identifies. On one machine, the same seed
gives the same bytes.

The output is a folder in Hugging Face's layout: weights rounded to bfloat16 (loaded as float32), `training.json` (the record of
the training) and `truth.json` (the effect of ablating each head on the log-probability of new repeats, in nats).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saekit.files import write_whole
from saekit.lab.induction_model import BOS, CONTEXT, LONGEST, UNKNOWN, VOCABULARY, WORDS, induction_path, prompts
from saekit.lm import LanguageModel
from saekit.locate.causal import exhaustive_ablation, heads
from saekit.progress import track

LENGTHS = [length for length in range(4, LONGEST - 2) if length % 4 != 1]
ROWS = 64
WIDTH = 64
HEADS = 4
TRUTH = {"n": 64, "length": 17, "seed": 0}


def make_model(seed: int) -> Any:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="eager",
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def batch(generator: torch.Generator) -> tuple[Tensor, int]:
    """ROWS rows of BOS, a sequence of distinct words and the same sequence again; and the length of the sequence."""
    length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=generator))]
    first = len(VOCABULARY) - len(WORDS)
    words_BL = first + torch.rand(ROWS, len(WORDS), generator=generator).argsort(1)[:, :length]
    bos_B1 = torch.full((ROWS, 1), VOCABULARY.index(BOS))
    return torch.cat([bos_B1, words_BL, words_BL], 1), length


def head_norms(model: Any) -> Tensor:
    """Frobenius norms of the (d_model, d_head) slices of the output projections: (layers * heads,)."""
    weights = torch.stack([block.self_attn.o_proj.weight for block in model.model.layers])
    return weights.unflatten(2, (HEADS, -1)).square().sum((1, 3)).add(1e-8).sqrt().flatten()


def train(seed: int, steps: int, penalty: float, rate: float, progress: bool) -> tuple[Any, dict[str, float]]:
    """Train the model. Returns it with the loss of every step, in nats per token."""
    model = make_model(seed).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    losses: dict[str, float] = {}
    with track("training", total=steps, unit="steps", enabled=progress) as bar:
        for step in range(1, steps + 1):
            tokens_BT, length = batch(generator)
            logits_BTV = model(tokens_BT, use_cache=False).logits
            loss = cross_entropy(logits_BTV[:, length + 1 : -1].flatten(0, 1), tokens_BT[:, length + 2 :].flatten())
            optimizer.zero_grad()
            (loss + penalty * head_norms(model).sum()).backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step in (1, steps):
                losses[str(step)] = round(loss.item(), 5)
            bar.update(step, note=f"loss {loss.item():.3f}")
    return model.eval(), losses


def save(model: Any, folder: Path) -> None:
    """Save weights as bfloat16, the configuration and the tokenizer."""
    from safetensors.torch import save as to_bytes
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / "model.safetensors", to_bytes(weights, metadata={"format": "pt"}))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=BOS, unk_token=UNKNOWN, model_max_length=CONTEXT, clean_up_tokenization_spaces=False
    )
    with tempfile.TemporaryDirectory() as temporary:
        model.config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            write_whole(folder / path.name, path.read_bytes())


def truth(folder: Path) -> dict[str, Any]:
    """The effect of ablating each head of the saved model alone, on new repeats of a held-out length."""
    lm = LanguageModel.load(folder, device="cpu", bos="yes")
    fresh = prompts(**TRUTH)
    logits_BTV = lm.run(fresh.rows).logits
    assert logits_BTV is not None

    def effects(to: Any) -> dict[str, float]:
        found = exhaustive_ablation(lm, heads(lm), fresh.rows, fresh.log_probability, to=to, progress=False)
        return {str(ref): round(effect, 6) for ref, effect in found.items()}

    return {
        "prompts": TRUTH,
        "accuracy": round(fresh.accuracy(logits_BTV), 6),
        "log_probability": round(float(fresh.log_probability(logits_BTV)), 6),
        "zero_ablation": effects("zero"),
        "mean_ablation": effects("mean"),
    }


def main(arguments: list[str] | None = None) -> None:
    """Train and save the model, and measure its heads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=induction_path(), help="folder to write (default: that of the shipped model)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: 0)")
    parser.add_argument("--steps", type=int, default=1000, help=f"optimizer steps of {ROWS} sequences each (default: 1000)")
    parser.add_argument("--penalty", type=float, default=0.03, help="weight of the group penalty on heads (default: 0.03)")
    parser.add_argument("--rate", type=float, default=3e-3, help="largest learning rate (default: 0.003)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    given = parser.parse_args(arguments)
    if given.steps < 1:
        parser.error("--steps must be 1 or more")
    torch.set_num_threads(1)  # one order of summation, for identical bytes
    model, losses = train(given.seed, given.steps, given.penalty, given.rate, not given.quiet)
    save(model, given.out)
    settings = {name: getattr(given, name) for name in ("seed", "steps", "penalty", "rate")}
    record = {**settings, "rows": ROWS, "lengths": LENGTHS, "loss": losses}
    found = truth(given.out)
    for name, content in (("training.json", record), ("truth.json", found)):
        write_whole(given.out / name, (json.dumps(content, indent=1) + "\n").encode())
    size = sum(path.stat().st_size for path in given.out.iterdir())
    print(f"{given.out}: {size:,} bytes; accuracy {found['accuracy']:.4f}, log-probability {found['log_probability']:.4f}")
    print("  ".join(f"{ref} {effect:+.3f}" for ref, effect in found["zero_ablation"].items()))


if __name__ == "__main__":
    main()
