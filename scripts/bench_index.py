"""Speed and memory of indexing: against the forward pass and the encoder alone, and against other tools.

    python -m scripts.bench_index                       # live indexing and its floor, A B A B
    python -m scripts.bench_index --memory 1000000 10000000
    python -m scripts.bench_index --peers PYTHON        # an interpreter that has sae-dashboard and eai-delphi

The model is a random GPT-2, the dictionary a random TopK SAE; the text is generated. Each measurement is a process of its own
with one thread. CPU seconds are given beside wall time: on a machine with other work, their ratio is the one to compare.

- floor: the forward pass up to the layer, and the encoder, on the same batches. Results are dropped.
- saekit: `build_all` live from the model, with all statistics. `pass` is the pass over the tokens, `write` the rows.
- `SAEDashboard`: `SaeVisRunner.run`, of a part of the features if --features says so: its time is proportional to their number.
- `delphi`: `LatentCache.run` and `save_splits`.

Memory is the peak resident size of a process that indexes synthetic activations, which are made block by block.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

ROOT = Path(__file__).parents[1]


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Write the model, the dictionary (also as sae-lens reads it), the text and the tokens."""
    from saekit.activations import Corpus, token_batches
    from saekit.lm import LanguageModel
    from saekit.sae import SAE, SAEConfig
    from scripts.bench_cache import make_model, make_text

    make_model(folder / "model", args.width, args.layers)
    texts = list(make_text(max(2, args.tokens // 150)))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lm = LanguageModel.load(folder / "model")
    batches = token_batches(lm, Corpus.open(folder / "text.jsonl"), context=args.context, n_tokens=args.tokens)
    rows = torch.cat([batch.tokens_BT for batch in batches if batch.tokens_BT.shape[1] == args.context])
    np.save(folder / "tokens.npy", rows.numpy())
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(args.latents, args.width, generator=generator), dim=1)
    zeros = {"b_enc": torch.zeros(args.latents), "b_dec": torch.zeros(args.width)}
    config = SAEConfig("topk", d_in=args.width, n_latents=args.latents, k=args.k, site_map=args.site)
    SAE(config, {"W_enc": W_dec.T.contiguous(), "W_dec": W_dec, **zeros}).save(folder / "sae")


def _parts(folder: Path, args: argparse.Namespace) -> tuple[Any, Any, Any]:
    from saekit.activations import ComputedActivations, Corpus
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

    lm, sae = LanguageModel.load(folder / "model"), SAE.load(folder / "sae")
    corpus = Corpus.open(folder / "text.jsonl")
    settings: dict[str, Any] = {"context": args.context, "n_tokens": args.tokens}
    return lm, sae, ComputedActivations(lm, [args.site], corpus, known_tokens=args.tokens, progress=False, **settings)


def floor(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """The forward pass and the encoder alone."""
    _, sae, store = _parts(folder, args)
    site = store.sites[0]
    with torch.no_grad():
        sae.encode_sparse(torch.randn(4096, args.width))  # compiles
        clock = _Clock()
        for block in store.stream([site], batch_tokens=16_384):
            _ = sae.encode_sparse(block.acts[site]).values
    return clock.read("pass")


def index(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Live indexing; the second of two runs, so that compiling is not measured."""
    from feature_db import Subject, build_all
    from feature_db.index import indexing

    lm, sae, store = _parts(folder, args)
    found: dict[str, float] = {}
    count, write = indexing.count, indexing._write

    def timed(name: str, work: Any) -> Any:
        def run(*given: Any) -> None:
            clock = _Clock()
            work(*given)
            found.update(clock.read(name))

        return run

    indexing.count, indexing._write = timed("pass", count), timed("write", write)  # type: ignore[assignment]
    for _ in range(2):
        with tempfile.TemporaryDirectory() as out:
            subject = Subject(sae, args.site)
            build_all(
                Path(out) / "f.sqlite", [subject], store=store, lm=lm, vectors=Path(out) / "vectors", heldout=0.0, progress=False
            ).close()
    return found


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        return {f"{name}_wall": time.perf_counter() - self._start[0], f"{name}_cpu": time.process_time() - self._start[1]}


class Synthetic:
    """A store of random activations, made when they are read. Contexts are drawn from the text, each a document of its own."""

    def __init__(self, n_tokens: int, width: int, contexts: np.ndarray) -> None:
        self.n_tokens, self._width, self._contexts = n_tokens, width, contexts
        self.provenance = {"synthetic": [n_tokens, width]}

    def width(self, site: Any) -> int:
        return self._width

    def stream(self, sites: Any, *, batch_tokens: int, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Any]:
        from saekit.activations import Block

        context = self._contexts.shape[1]
        rows = batch_tokens // context * context
        for first in range(start, self.n_tokens, rows):
            n = min(rows, self.n_tokens - first)
            random = np.random.default_rng(first)
            position = torch.arange(first, first + n, dtype=torch.int64) % context
            drawn = self._contexts[random.integers(0, len(self._contexts), -(-n // context))]
            tokens, document = torch.from_numpy(drawn.ravel()[:n].astype(np.int32)), torch.arange(first, first + n) // context
            acts = torch.from_numpy(random.standard_normal((n, self._width), np.float32))
            yield Block(first, tokens, position.int(), document, position == 0, {sites[0]: acts})


def memory(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Index synthetic activations; the peak resident size of this process in MiB."""
    from feature_db import Subject, build_all
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

    lm, sae = LanguageModel.load(folder / "model"), SAE.load(folder / "sae")
    store = Synthetic(args.synthetic, args.width, np.load(folder / "tokens.npy"))
    clock = _Clock()
    out = folder / f"memory-{args.synthetic}"
    build_all(out / "f.sqlite", [Subject(sae, args.site)], store=store, lm=lm, vectors=out / "vectors", progress=False).close()
    return clock.read("index") | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


MEASURED = {"floor": floor, "index": index, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 256), ("layers", 4), ("latents", 4096), ("k", 32), ("context", 128), ("tokens", 32_768)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--site", default="resid_post.3")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs="*", default=[])
    parser.add_argument("--peers", default="")
    parser.add_argument("--features", type=int, default=512, help="features that SAEDashboard describes")
    parser.add_argument("--peer-tokens", type=int, default=8192)
    parser.add_argument("--run", choices=MEASURED, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--synthetic", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        torch.set_num_threads(1)
        print(json.dumps(MEASURED[args.run](args.folder, args)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder, args)
        if args.memory:
            for n in args.memory:
                print(f"{n:>12,} tokens", _process(folder, "memory", f"--synthetic={n}"), flush=True)
        elif args.peers:
            _peers(folder, args)
        else:
            _ratio(folder, args)


def _ratio(folder: Path, args: argparse.Namespace) -> None:
    rounds = [(_process(folder, "floor"), _process(folder, "index")) for _ in range(args.rounds)]
    for clock in ("wall", "cpu"):
        ratios = [one[f"pass_{clock}"] / two[f"pass_{clock}"] for one, two in rounds]
        speeds = [args.tokens / each[f"pass_{clock}"] for pair in rounds for each in pair]
        writes = [two[f"write_{clock}"] / args.latents * 1e3 for _, two in rounds]
        print(
            f"{clock}: tokens/s floor, index, ...: {', '.join(f'{speed:,.0f}' for speed in speeds)}; ratio median "
            f"{statistics.median(ratios):.2f}; write {statistics.median(writes):.2f} ms a feature"
        )


def _peers(folder: Path, args: argparse.Namespace) -> None:
    ours = _process(folder, "index")
    print("saekit", {name: round(value, 2) for name, value in ours.items()}, f"{args.tokens} tokens, {args.latents} features")
    given = [str(folder), str(args.features), str(args.peer_tokens), args.site]
    for peer in ("delphi", "sae-dashboard"):
        done = subprocess.run(
            [args.peers, str(ROOT / "scripts" / "bench_index_peers.py"), peer, *given], capture_output=True, text=True
        )
        print(peer, done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-800:], flush=True)


def _process(folder: Path, name: str, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.bench_index", *sys.argv[1:], "--run", name, "--folder", str(folder), *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
