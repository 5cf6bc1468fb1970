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

from saekit.files import write_whole
from saekit.lab.induction_model import BOS, CONTEXT, UNKNOWN, VOCABULARY, induction_path, prompts
from saekit.lab.induction_training import LENGTHS, ROWS, Training, make_model, train
from saekit.lm import LanguageModel
from saekit.locate.causal import exhaustive_ablation, heads

TRUTH = {"n": 64, "length": 17, "seed": 0}


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
    training = Training(given.seed, given.steps, given.penalty, given.rate)
    model, losses = train(make_model(given.seed), training, progress=not given.quiet)
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
