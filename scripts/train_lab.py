"""Train the laboratory's language model from scratch on the corpus that saekit generates.

The result is a Hugging Face folder with bfloat16 weights, a tokenizer and `training.json`, the record of the training. Equal
arguments on equal machines give equal models. To resume a stopped run, give the same command again. The defaults make the model
that saekit ships, in about an hour on two cores. A GPU is used if there is one.

Examples:
    python scripts/train_lab.py --out lab-1
    python scripts/train_lab.py --out lab-2 --seed 2                                       # the same skills from another seed
    python scripts/train_lab.py --out dynamics --tokens 8_000_000 --checkpoints 24         # a short run for its dynamics
    python scripts/train_lab.py --out large --layers 12 --width 512 --tokens 200_000_000   # a larger laboratory
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saekit import lab
from saekit.activations import Corpus
from saekit.errors import ConfigError, SaekitError
from saekit.files import write_whole
from saekit.progress import track

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
TOKENIZER_DOCUMENTS = 60_000
POOL_DOCUMENTS = 8_192
INTRODUCTION = (*[("induction", 0.75)] * 4, *[("retrieval", 0.6)] * 4)
"""For each of the first pools of documents, a genre and its share of it: copying, and what builds on it, is learnt soonest where
little else is to be had."""
IGNORED = -100
STATE = "state.safetensors"
HEAD = 32
"""Width of a head."""
BETWEEN_CHECKPOINTS_S = 120


@dataclass(frozen=True)
class Plan:
    """All settings that determine the result of a run."""

    seed: int
    tokens: int
    layers: int
    width: int
    vocabulary: int
    context: int
    batch_tokens: int
    micro_tokens: int
    lr: float
    muon_lr: float

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 1 <= self.micro_tokens <= self.batch_tokens:
            raise ConfigError(
                f"{self.tokens} tokens in steps of {self.batch_tokens}, {self.micro_tokens} at a time: nothing to train on.",
                "--tokens and --micro-tokens must be 1 or more, and --batch-tokens no less than --micro-tokens.",
            )
        if self.width < HEAD or self.width % HEAD:
            raise ConfigError(f"The width is {self.width}.", f"--width must be a multiple of {HEAD}, the width of a head.")


def train_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with single digits, trained on the training split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocabulary,
        min_frequency=2,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document.text for document in lab.documents(seed=plan.seed, n=TOKENIZER_DOCUMENTS))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return wrapped(tokenizer.to_str(), plan)


def wrapped(tokenizer: str, plan: Plan) -> PreTrainedTokenizerFast:
    """A `tokenizer.json` as a tokenizer of transformers."""
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=plan.context,
        clean_up_tokenization_spaces=False,
    )


def new_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings, initialised from the seed."""
    torch.manual_seed(plan.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=plan.width,
            intermediate_size=plan.width * 8 // 3 // 64 * 64,
            num_hidden_layers=plan.layers,
            num_attention_heads=plan.width // HEAD,
            num_key_value_heads=plan.width // HEAD,
            max_position_embeddings=plan.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # twice as fast as the fused kernel in the backward pass on CPUs
        )
    )


@dataclass(frozen=True)
class Batch:
    """Right-padded documents of similar length, and the genre of each row."""

    tokens_BT: Tensor
    lengths_B: Tensor
    genre_B: Tensor


class Batches:
    """An endless stream of training batches. Its position is batch `taken` of the documents of pool `pool`."""

    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerFast, pool: int = 0, taken: int = 0) -> None:
        self._plan, self._tokenizer = plan, tokenizer
        self.pool, self.taken = pool, taken
        self.genres = sorted(lab.GENRES)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batches = self._batches(self.documents())
            while self.taken < len(batches):
                self.taken += 1
                yield self._padded(*batches[self.taken - 1])
            self.pool, self.taken = self.pool + 1, 0

    def documents(self) -> list[lab.Document]:
        """The documents of the current pool."""
        start = self.pool * POOL_DOCUMENTS
        documents = list(lab.documents(seed=self._plan.seed, start=start, n=POOL_DOCUMENTS))
        if self.pool < len(INTRODUCTION):
            genre, share = INTRODUCTION[self.pool]
            more = int(share * POOL_DOCUMENTS)
            documents[:more] = lab.documents(genre, seed=self._plan.seed, start=start, n=more)
        return documents

    def _batches(self, documents: list[lab.Document]) -> list[tuple[list[list[int]], list[int]]]:
        """Batches of documents of similar length, in random order."""
        end = self._tokenizer.eos_token_id
        encoded = self._tokenizer([document.text for document in documents])["input_ids"]
        genres = {name: self._named(name) for name in {document.genre for document in documents}}
        rows = [
            ((ids + [end])[: self._plan.context], genres[document.genre])
            for ids, document in zip(encoded, documents, strict=True)
        ]
        rows.sort(key=lambda row: len(row[0]))
        batches: list[tuple[list[list[int]], list[int]]] = []
        start = 0
        for stop in range(1, len(rows) + 1):
            if stop == len(rows) or (stop - start + 1) * len(rows[stop][0]) > self._plan.micro_tokens:
                batches.append(([ids for ids, _ in rows[start:stop]], [genre for _, genre in rows[start:stop]]))
                start = stop
        Random(f"{self._plan.seed}/order/{self.pool}").shuffle(batches)
        return batches

    def _named(self, genre: str) -> int:
        """The number of a genre; genres are numbered as they come, those of the laboratory first."""
        if genre not in self.genres:
            self.genres.append(genre)
        return self.genres.index(genre)

    def _padded(self, rows: list[list[int]], genres: list[int]) -> Batch:
        longest = max(map(len, rows))
        padded = [ids + [self._tokenizer.pad_token_id] * (longest - len(ids)) for ids in rows]
        return Batch(torch.tensor(padded), torch.tensor([len(ids) for ids in rows]), torch.tensor(genres))


def optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the other parameters."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pace(done: float) -> float:
    """Factor of the learning rate at the share `done` of the run: short warm-up, plateau, long linear decay."""
    return min(1.0, done / 0.02 + 0.02, (1 - done) / 0.6)


class Run:
    """A training run and its state."""

    batches_of = Batches

    def begin(self) -> None:
        """Begin with a new tokenizer and a new model."""
        self.tokenizer = train_tokenizer(self.plan)
        self.model = new_model(self.plan, self.tokenizer)

    def __init__(self, plan: Plan, folder: Path, device: torch.device) -> None:
        self.plan, self.folder, self.device = plan, folder, device
        self.step = self.seen = 0
        self.losses: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        state = self._saved()
        if state:
            self.tokenizer = wrapped(state[1]["tokenizer"], plan)
            self.model = new_model(plan, self.tokenizer)
        else:
            self.begin()
        self.model.to(device)
        self.optimizers = optimizers(self.model, plan)
        self.batches = self.batches_of(plan, self.tokenizer)
        self.low_precision = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if state:
            self._resume(*state)

    def corpus(self) -> dict[str, Any]:
        """What is trained on, for the record."""
        return Corpus.open("lab").fingerprint()

    def train(self, checkpoints: int, progress: bool) -> None:
        """Train to the end of the plan and write the model."""
        first = self.plan.batch_tokens / self.plan.tokens
        shots = [int(self.plan.tokens * first ** (1 - i / checkpoints)) for i in range(checkpoints)]
        shots = [shot for shot in shots if shot >= self.seen]
        saved = started = time.monotonic()
        before = self.seconds
        stream = iter(self.batches)
        with track("training", total=self.plan.tokens, enabled=progress) as bar:
            while self.seen < self.plan.tokens:
                while shots and self.seen >= shots[0]:
                    self.export(self.folder / "checkpoints" / f"tokens-{self.seen:010d}")
                    shots.pop(0)
                loss = self._step(stream)
                if not math.isfinite(loss):
                    raise ConfigError(f"the loss is {loss} at step {self.step}", "Restart with a lower --lr and --muon-lr.")
                self.seconds = before + time.monotonic() - started
                bar.update(self.seen, f"loss {loss:.3f}")
                if self.step % 50 == 0:
                    self.history.append({"step": self.step, "tokens": self.seen, "loss": loss, "genres": dict(self.losses)})
                if time.monotonic() - saved > BETWEEN_CHECKPOINTS_S:
                    self._save()
                    saved = time.monotonic()
        self.export(self.folder)
        (self.folder / STATE).unlink(missing_ok=True)

    def _step(self, stream: Iterator[Batch]) -> float:
        micro = [next(stream) for _ in range(self.plan.batch_tokens // self.plan.micro_tokens)]
        targets = sum(int(batch.lengths_B.sum()) - len(batch.lengths_B) for batch in micro)
        total = 0.0
        for batch in micro:
            losses_BT = self._losses(batch)
            (losses_BT.sum() / targets).backward()
            total += losses_BT.detach().sum().item() / targets
            self._note(batch, losses_BT.detach().cpu())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, (self.plan.muon_lr, self.plan.lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * pace(self.seen / self.plan.tokens)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seen += sum(int(batch.lengths_B.sum()) for batch in micro)
        return total

    def _losses(self, batch: Batch) -> Tensor:
        """Cross-entropy of every next token in nats, 0 after the end of a document: (B, T - 1)."""
        tokens_BT = batch.tokens_BT.to(self.device)
        ended_BT = torch.arange(tokens_BT.shape[1]) >= batch.lengths_B[:, None]
        targets_BT = tokens_BT.masked_fill(ended_BT.to(self.device), IGNORED)[:, 1:]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            logits_BTV = self.model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        flat = nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none")
        return flat.view_as(targets_BT)

    def _note(self, batch: Batch, losses_BT: Tensor) -> None:
        """Update the moving mean of the loss of each genre."""
        names = self.batches.genres
        for genre in batch.genre_B.unique().tolist():
            rows = batch.genre_B == genre
            mean = losses_BT[rows].sum().item() / int((batch.lengths_B[rows] - 1).sum())
            self.losses[names[genre]] = (
                mean if names[genre] not in self.losses else 0.98 * self.losses[names[genre]] + 0.02 * mean
            )

    def export(self, folder: Path) -> None:
        """Write the model, the tokenizer and the record as a Hugging Face folder."""
        model = new_model(self.plan, self.tokenizer)
        model.load_state_dict(self.model.state_dict())
        model.to(torch.bfloat16).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = "float32"  # weights are stored in bfloat16 and loaded in float32
        write_whole(folder / "config.json", json.dumps(config, indent=2).encode())
        (folder / "model.safetensors").chmod(0o644)
        self.tokenizer.save_pretrained(folder)
        parameters = sum(p.numel() for p in self.model.parameters())
        record = {"plan": asdict(self.plan), "parameters": parameters, "steps": self.step, "tokens": self.seen}
        record |= {
            "corpus": self.corpus(),
            "seconds": round(self.seconds),
            "genres": self.losses,
            "history": self.history,
        }
        write_whole(folder / "training.json", json.dumps(record, indent=1).encode())

    def _save(self) -> None:
        """Write the state for resuming as one file, so that a kill cannot leave an inconsistent state."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items() if name != "lm_head.weight"}
        for which, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{which}/{index}/{name}": value for name, value in entries.items()}
        facts = {"plan": asdict(self.plan), "step": self.step, "seen": self.seen, "seconds": self.seconds, "losses": self.losses}
        facts |= {"pool": self.batches.pool, "taken": self.batches.taken, "history": self.history}
        facts |= {"tokenizer": self.tokenizer.backend_tokenizer.to_str()}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_whole(self.folder / STATE, save(plain, {"facts": json.dumps(facts)}))

    def _saved(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not (self.folder / STATE).is_file():
            return None
        with safe_open(self.folder / STATE, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            check_plan(self.folder, facts["plan"], self.plan)
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118

    def _resume(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        self.model.load_state_dict(weights, strict=False)  # the output head shares the embedding
        for which, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith(f"optimizer/{which}/"):
                    _, _, index, entry = name.split("/")
                    state.setdefault(int(index), {})[entry] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step, self.seen, self.seconds = facts["step"], facts["seen"], facts["seconds"]
        self.losses, self.history = facts["losses"], facts["history"]
        self.batches = self.batches_of(self.plan, self.tokenizer, facts["pool"], facts["taken"])


def check_plan(folder: Path, found: dict[str, Any], plan: Plan) -> None:
    """Raise `ConfigError` if `folder` contains a run of another plan."""
    if changed := [key for key, value in asdict(plan).items() if found.get(key) != value]:
        raise ConfigError(
            f"{folder} contains a run with different settings: {', '.join(changed)}.",
            "Use the settings of that run, or another --out.",
        )


def is_finished(folder: Path, plan: Plan) -> bool:
    """Whether `folder` contains the complete model of `plan`. Raises `ConfigError` if it contains that of another plan."""
    if not (folder / "training.json").is_file():
        return False
    check_plan(folder, json.loads((folder / "training.json").read_text())["plan"], plan)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16_000_000, help="tokens to train on")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=192, help="d_model, a multiple of the head width 32")
    parser.add_argument("--vocabulary", type=int, default=4096, help="maximal size of the vocabulary")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=6144, help="tokens per optimizer step")
    parser.add_argument("--micro-tokens", type=int, default=1536, help="tokens per forward pass")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate of AdamW, for embeddings and norms")
    parser.add_argument("--muon-lr", type=float, default=4e-3, help="learning rate of Muon, for matrices")
    parser.add_argument("--checkpoints", type=int, default=0, help="number of intermediate models to keep, at growing intervals")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = vars(parser.parse_args())
    out, checkpoints, device, quiet = (options.pop(name) for name in ("out", "checkpoints", "device", "quiet"))
    try:
        plan = Plan(**options)
        if is_finished(out, plan):
            print(f"{out}: finished already")
            return
        out.mkdir(parents=True, exist_ok=True)
        run = Run(plan, out, torch.device(device))
        run.train(checkpoints, progress=not quiet)
    except SaekitError as error:
        sys.exit(str(error))
    print(f"{out}: {run.seen:,} tokens in {run.seconds / 60:.0f} minutes")


if __name__ == "__main__":
    main()
