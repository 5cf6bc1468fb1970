"""The saving from training several dictionaries in one pass over live activations of a model.

Eight SAEs of one site are trained in one pass and one after the other, in the order A B A B, from scratch and without a cache.
Separate runs each compute the forward passes of the model; a sweep computes them once. The script checks that the dictionaries
are bit-identical either way. It prints core-seconds besides wall time, since core-seconds depend less on other processes. At the
end it evaluates the eight dictionaries and writes a page that compares them.

Examples:
    python scripts/bench_sweep.py                               # the lab model
    python scripts/bench_sweep.py --model ../shared/models/stories260k --data ../shared/data/tinystories_800.jsonl
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not use CPU time

from saekit.activations import Corpus, LiveActivations
from saekit.activations.corpus.batches import token_batches
from saekit.evaluate.dictionary.cross_entropy import ce_recovered
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.report import rank, write_sweep
from saekit.sae import SAE
from saekit.sae.metrics import reconstruction
from trainers import Plan, plans, train_all

MEASURED = 2048  # tokens


def source(lm: LanguageModel, corpus: Corpus, site: Site, options: argparse.Namespace, split: Any = "train") -> LiveActivations:
    return LiveActivations(
        lm, [site], corpus, batch_size=options.batch, split=split, buffer_tokens=16 * options.batch, n_tokens=options.tokens
    )


def describe(lm: LanguageModel, site: Site, options: argparse.Namespace, out: Path) -> list[Plan]:
    settings = {
        "site": str(site),
        "latents": options.latents,
        "tokens": options.tokens,
        "batch_size": options.batch,
        "sample_tokens": options.batch,
        "checkpoint_tokens": options.tokens,
        "grid": {"arch": options.arch, "l0": options.l0},
    }
    return plans(settings, out, lm.width)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds and core-seconds."""
    wall, cores = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cores


def measure(lm: LanguageModel, corpus: Corpus, plans: list[Plan], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The comparison metrics of each dictionary, on held-out activations and on text."""
    site = plans[0].route.site
    heldout = source(lm, corpus, site, options, "heldout")
    acts = list(islice(heldout, -(-MEASURED // options.batch)))
    tokens = list(token_batches(lm, corpus, context=heldout.context, n_tokens=MEASURED, batch_size=8))
    saes = [SAE.load(plan.out) for plan in plans]
    return [{**reconstruction(sae, acts), **ce_recovered(lm, sae, site, tokens)} for sae in saes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--data", default="lab")
    parser.add_argument("--site", help="default: resid_post of the last layer but one")
    parser.add_argument("--arch", nargs="*", default=["topk", "batchtopk"])
    parser.add_argument("--l0", nargs="*", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--page", type=Path, default=Path("bench-sweep.html"))
    options = parser.parse_args()
    lm, corpus = LanguageModel.load(options.model), Corpus.open(options.data)
    site = lm.site(options.site or f"resid_post.{lm.n_layers - 2}")

    def read() -> None:
        n = 0
        for batch in source(lm, corpus, site, options):
            if (n := n + len(batch[site])) >= options.tokens:
                break

    def together() -> None:
        train_all(source(lm, corpus, site, options), both["together"], lm=lm, progress=False)

    def apart() -> None:
        for plan in both["apart"]:
            train_all(source(lm, corpus, site, options), [plan], lm=lm, progress=False)

    rows: dict[str, list[tuple[float, float]]] = {"together": [], "apart": []}
    with tempfile.TemporaryDirectory() as folder:
        both = {name: describe(lm, site, options, Path(folder) / "first" / name) for name in rows}
        together()  # compiles
        for turn in range(options.rounds):
            both = {name: describe(lm, site, options, Path(folder) / str(turn) / name) for name in rows}
            reading = timed(read)
            for name, work in (("together", together), ("apart", apart)):
                cost = timed(work)
                rows[name].append(cost)
                print(f"{name:9} {cost[0]:7.1f} s   {cost[1]:7.1f} core-s   (reading once {reading[1]:.1f} core-s)", flush=True)
            for one, other in zip(both["together"], both["apart"]):
                same = (one.out / "sae_weights.safetensors").read_bytes() == (other.out / "sae_weights.safetensors").read_bytes()
                assert same, f"{one.name} differs between the sweep and the separate run"
        n = len(both["together"])
        for i, unit in enumerate(("wall", "core-seconds")):
            ratios = [one[i] / other[i] for one, other in zip(rows["together"], rows["apart"])]
            told = ", ".join(f"{each:.2f}" for each in ratios)
            print(f"{n} in one pass cost {statistics.median(ratios):.2f} of {n} separate passes, {unit} ({told})")
        metrics = measure(lm, corpus, both["together"], options)
        title = f"{n} dictionaries of {options.model} at {site}, in one pass"
        print(write_sweep(title, rank(both["together"], metrics), options.page, linked=False))


if __name__ == "__main__":
    main()
