"""Speed of caching activations: saekit, sae-lens and the bare forward pass, on the same model, text and disk.

    python scripts/bench_cache.py                                 # a random GPT-2 (width 512, 6 layers) and generated text
    python scripts/bench_cache.py --model MODEL --data x.jsonl    # another model and text

All candidates run in one process in the order A B C A B C, so that other work on the machine slows all of them. The ratios are
therefore the figures to compare: each is the median over rounds of the ratio within a round. The script also prints CPU seconds
of all threads. `quiet` is wall time over the samples in which other processes used at most 6 % of the machine.

Each candidate processes the same number of tokens in contexts of the same length and batches of the same size:

- floor: the forward pass on prepared tokens, ended by an exception right after the layer. Results are dropped.
- sae-lens: `CacheActivationsRunner.run` from text, without shuffling, with buffers that divide the tokens. `TL` is its default
  (HookedTransformer), `HF` its other route (AutoModelForCausalLM, ended early as well). `ids` reads a prepared data set of token
  ids, as its documentation recommends.
- saekit: `write_store` from text, with checksums and fsync.

`fp32 -> bf16` means computed in float32 and stored in bfloat16. sae-lens stores float16 instead, since Arrow has no bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Waiting threads must not spin: spinning counts as CPU time and slows other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import torch

from saekit.activations import Corpus, token_batches, write_store
from saekit.lm import LanguageModel


def make_model(folder: Path, width: int, layers: int) -> None:
    """A random GPT-2, and a BPE tokenizer of 8000 entries trained on the text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(make_text(2000, seed=1), vocab_size=8000, special_tokens=["<s>", "</s>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": 1024, "n_ctx": 1024}
    config = GPT2Config(vocab_size=8000, bos_token_id=0, eos_token_id=1, **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)


def make_text(n: int, seed: int = 0) -> Iterator[str]:
    """Documents of about 300 made-up words whose frequencies follow Zipf's law."""
    import numpy as np

    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = ["".join(np.random.default_rng(i).choice(letters, size=2 + i % 9)) for i in range(20_000)]
    odds = 1 / np.arange(10, 10 + len(words))
    for _ in range(n):
        yield " ".join(words[i] for i in random.choice(len(words), size=random.integers(100, 500), p=odds / odds.sum()))


class Floor:
    """The forward pass alone, up to a layer."""

    def __init__(self, lm: LanguageModel, layer: int, batches: list[torch.Tensor]) -> None:
        self.lm, self.layer, self.batches = lm, layer, batches

    def __call__(self, folder: Path) -> None:
        class Stop(Exception):
            pass

        def stop(*_: Any) -> None:
            raise Stop

        hook = self.lm.blocks[self.layer].register_forward_hook(stop)
        with torch.no_grad():
            for tokens_BT in self.batches:
                with contextlib.suppress(Stop):
                    self.lm.model(input_ids=tokens_BT, use_cache=False)
        hook.remove()


class SaeLens:
    """The caching of sae-lens."""

    def __init__(self, args: argparse.Namespace, route: str, model: str, lm: LanguageModel, data: Any, stored: str) -> None:
        self.args, self.route, self.model, self.lm, self.data, self.stored = args, route, model, lm, data, stored

    def prepare(self, folder: Path) -> None:
        """Load the model. Loading is not timed."""
        from sae_lens.cache_activations_runner import CacheActivationsRunner
        from sae_lens.config import CacheActivationsRunnerConfig

        args, lm = self.args, self.lm
        path = next(name for name, module in lm.model.named_modules() if module is lm.blocks[args.layer])
        config = CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=self.model,
            model_class_name="AutoModelForCausalLM" if self.route == "HF" else "HookedTransformer",
            model_from_pretrained_kwargs={"dtype": lm.dtype},
            model_batch_size=args.batch,
            hook_name=path if self.route == "HF" else f"blocks.{args.layer}.hook_resid_post",
            d_in=lm.d_model,
            training_tokens=args.tokens,
            context_size=args.context,
            new_cached_activations_path=str(folder / "acts"),
            shuffle=False,
            dtype=self.stored,
            device="cpu",
            buffer_size_gb=(args.tokens // 4 + 0.5) * lm.d_model * {"float32": 4, "float16": 2}[self.stored] / 1e9,
            streaming=False,
        )
        self.runner = CacheActivationsRunner(config, override_dataset=self.data)

    def __call__(self, folder: Path) -> None:
        rows = self.runner.run()
        assert len(rows) * self.args.context == self.args.tokens, "sae-lens stored a different number of tokens"


class Saekit:
    """`write_store`."""

    def __init__(self, args: argparse.Namespace, lm: LanguageModel, corpus: Path, stored: str) -> None:
        self.args, self.lm, self.corpus, self.stored = args, lm, corpus, stored

    def __call__(self, folder: Path) -> None:
        args = self.args
        store = write_store(
            folder / "acts",
            self.lm,
            [f"resid_post.{args.layer}"],
            Corpus.open(self.corpus),
            n_tokens=args.tokens,
            context=args.context,
            batch_size=args.batch,
            dtype=self.stored,
            progress=False,
        )
        assert store.n_tokens == args.tokens


Times = dict[str, dict[str, list[float]]]
_QUIET = 0.06  # largest share of the machine that other processes may use in a quiet sample


def measure(candidates: dict[str, Any], args: argparse.Namespace) -> Times:
    """Wall seconds, CPU seconds and the share of the machine that other processes used, for every candidate and round.

    The first round is a warm-up and is not counted.
    """
    found: Times = {name: {"wall": [], "cpu": [], "others": []} for name in candidates}
    for number in range(args.rounds + 1):
        for name, candidate in candidates.items():
            with tempfile.TemporaryDirectory(dir=args.out) as folder, quiet():
                if hasattr(candidate, "prepare"):
                    candidate.prepare(Path(folder))
                os.sync()
                busy, wall, cpu = busy_seconds(), time.perf_counter(), time.process_time()
                candidate(Path(folder))
                busy, wall, cpu = busy_seconds() - busy, time.perf_counter() - wall, time.process_time() - cpu
            others = max(0.0, busy - cpu) / (wall * (os.cpu_count() or 1))
            if number:
                for kind, value in (("wall", wall), ("cpu", cpu), ("others", others)):
                    found[name][kind].append(value)
            print(f"round {number} {name:30s} wall {wall:6.2f} s  cpu {cpu:6.2f} s  others {others:4.0%}", file=sys.stderr)
    return found


def busy_seconds() -> float:
    """Busy seconds of all cores since the machine started; 0 if the system does not report them."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def ratio(found: Times, ours: str, other: str, kind: str) -> float | None:
    """The speed of `ours` divided by the speed of `other`.

    For `wall` or `cpu`, this is the median over rounds of the ratio within a round. For `quiet`, it is the ratio of median wall
    times over quiet samples, or None if either candidate has fewer than three.
    """
    if kind != "quiet":
        return statistics.median(b / a for a, b in zip(found[ours][kind], found[other][kind]))
    samples = [[w for w, o in zip(found[name]["wall"], found[name]["others"]) if o <= _QUIET] for name in (ours, other)]
    return statistics.median(samples[1]) / statistics.median(samples[0]) if min(map(len, samples)) >= 3 else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn off progress bars."""
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name; default: a random GPT-2 of --width and --layers")
    parser.add_argument("--data", type=Path, help="text in a format that saekit reads; default: generated")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--layer", type=int, help="layer whose output is cached; default: the middle one")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="contexts in a forward pass")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a folder on the disk to write to; default: the system's temporary one")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if args.tokens % (args.batch * args.context * 4):
        parser.error(
            f"--tokens must be a multiple of {args.batch * args.context * 4}, so that sae-lens stores exactly this number"
        )
    args.out, args.json = (path and path.resolve() for path in (args.out, args.json))
    data = args.data and args.data.resolve()

    with tempfile.TemporaryDirectory() as made:
        model = args.model if args.model is None or not Path(args.model).exists() else str(Path(args.model).resolve())
        # TransformerLens accepts only known model names. A local folder with such a name works if it is in the current directory.
        os.chdir(made)
        if model is None:
            model = "gpt2"
            make_model(Path(model), args.width, args.layers)
        if data is None:
            data = Path("text.jsonl")
            data.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_text(args.tokens // 250)))
        candidates, about = build(args, model, data)
        found = measure(candidates, args)
    report(args, found, about)


def build(args: argparse.Namespace, model: str, data: Path) -> tuple[dict[str, Any], str]:
    """The candidates, and a description of the machine and the model."""
    import datasets

    single, half = (LanguageModel.load(model, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    args.layer = single.n_layers // 2 - 1 if args.layer is None else args.layer
    corpus = Corpus.open(data)
    made = list(token_batches(single, corpus, context=args.context, n_tokens=args.tokens, batch_size=args.batch))
    batches = [batch.tokens_BT for batch in made]
    if sum(batch.n_tokens for batch in made) < args.tokens:
        raise SystemExit(f"{data} has fewer than {args.tokens} tokens; ask for fewer with --tokens.")
    text = datasets.Dataset.from_dict({"text": list(corpus.documents())})
    ids = datasets.Dataset.from_dict({"input_ids": torch.cat(batches).tolist()})
    candidates: dict[str, Any] = {
        "floor fp32": Floor(single, args.layer, batches),
        "saekit fp32 -> fp32": Saekit(args, single, data, "float32"),
        "sae-lens TL fp32 -> fp32": SaeLens(args, "TL", model, single, text, "float32"),
        "sae-lens HF fp32 -> fp32": SaeLens(args, "HF", model, single, text, "float32"),
        "sae-lens HF ids fp32 -> fp32": SaeLens(args, "HF", model, single, ids, "float32"),
        "saekit fp32 -> bf16": Saekit(args, single, data, "bfloat16"),
        "floor bf16": Floor(half, args.layer, batches),
        "saekit bf16 -> bf16": Saekit(args, half, data, "bfloat16"),
        "sae-lens HF ids bf16 -> fp16": SaeLens(args, "HF", model, half, ids, "float16"),
    }
    if args.model is not None and not takes(candidates["sae-lens TL fp32 -> fp32"]):
        del candidates["sae-lens TL fp32 -> fp32"]
    what = args.model or f"random GPT-2 of {single.n_layers} layers"
    return candidates, (
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"{what}, resid_post.{args.layer}, d_model {single.d_model}; {args.tokens} tokens in contexts of {args.context}, "
        f"{args.batch} to a batch"
    )


def takes(candidate: SaeLens) -> bool:
    """Whether TransformerLens supports the model."""
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            candidate.prepare(Path(folder))
    except Exception as error:
        print(f"without TransformerLens: {error!s:.100}", file=sys.stderr)
        return False
    return True


def processor() -> str:
    """The name of the processor, and its instructions for fast matrix products."""
    with contextlib.suppress(OSError):
        facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
        return f"{facts.get('model name', platform.machine())} ({', '.join(fast)}), {os.cpu_count()} cores"
    return platform.processor()


def report(args: argparse.Namespace, found: Times, about: str) -> None:
    """Print the table of times and the ratios."""
    print(f"\n{about}\nmedian of {args.rounds} rounds; load of the machine {os.getloadavg()[0]:.1f}\n")
    print(f"{'':30s} {'tokens/s':>9s} {'tokens/CPU s':>13s} {'wall, s':>16s} {'CPU, s':>16s}")
    for name, times in found.items():
        wall, cpu = (args.tokens / statistics.median(times[kind]) for kind in ("wall", "cpu"))
        ranges = " ".join(f"{min(times[kind]):8.2f} ..{max(times[kind]):6.2f}" for kind in ("wall", "cpu"))
        print(f"{name:30s} {wall:9,.0f} {cpu:13,.0f} {ranges}")
    print()
    ratios = {}
    peers = ("sae-lens TL fp32 -> fp32", "sae-lens HF fp32 -> fp32", "sae-lens HF ids fp32 -> fp32")
    for ours, others in (
        ("saekit fp32 -> fp32", (*peers, "floor fp32")),
        ("saekit fp32 -> bf16", ("floor fp32",)),
        ("saekit bf16 -> bf16", (*peers, "sae-lens HF ids bf16 -> fp16", "floor bf16")),
    ):
        for other in others:
            if other in found:
                by = {kind: ratio(found, ours, other, kind) for kind in ("wall", "quiet", "cpu")}
                ratios[f"{ours} / {other}"] = by
                shown = ", ".join(f"{kind} {value:.2f}x" for kind, value in by.items() if value is not None)
                print(f"{ours} is faster than {other:29s} by {shown}")
    if args.json:
        args.json.write_text(json.dumps({"about": about, "seconds": found, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
