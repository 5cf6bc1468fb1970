"""Caching in processes that are killed repeatedly until one finishes. Run by tests/activations/test_resume.py."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from saekit.activations import Corpus, write_store
from tests.kit.crash import after, die_at, killed
from tests.kit.tiny import make_documents, make_lm

torch.set_num_threads(1)
LM, PACKING = make_lm(), sys.argv[2]


def cache(folder: Path) -> None:
    corpus = Corpus.open(make_documents(120))
    settings = {"context": 16, "batch_size": 4, "shard_tokens": 300, "dtype": "bfloat16", "packing": PACKING, "n_tokens": 1300}
    write_store(folder, LM, ["resid_post.0", "heads.1"], corpus, progress=False, **settings)


def at_random_moments(root: Path, seconds: float) -> int:
    """Kill caching at random moments until one process per folder finishes. Returns the number of kills."""
    generator = random.Random(0)
    kills = folders = 0
    while kills < 10:
        folder = root / f"killed{folders}"
        while killed(lambda folder=folder: cache(folder), after(generator.uniform(0, 1) * seconds)):
            kills += 1
        killed(lambda folder=folder: cache(folder))
        folders += 1
    return kills


def at_every_step(root: Path) -> int:
    """Kill caching at the first change of the disk, then at the second, and so on. Returns the number of kills."""
    for steps in range(1000):
        folder, patch = root / f"step{steps}", die_at(steps + 1)

        def work(patch: Callable[[], None] = patch, folder: Path = folder) -> None:
            patch()
            cache(folder)

        if not killed(work):
            return steps
        killed(lambda folder=folder: cache(folder))
    raise AssertionError


def main() -> None:
    root = Path(sys.argv[1])
    started = time.monotonic()
    killed(lambda: cache(root / "whole"))
    seconds = time.monotonic() - started
    print(at_every_step(root) if sys.argv[3] == "steps" else at_random_moments(root, seconds))


main()
