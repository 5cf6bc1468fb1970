"""Caches in processes that are killed, again and again, until one gets through. Run by test_resume.py.

Children are forked from a process that has the model ready, so that a kill costs no start-up.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tiny import make_documents, make_lm

from saekit.activations import Corpus, write_store

# One thread from the first: a pool of them would not survive a fork.
torch.set_num_threads(1)
LM, PACKING = make_lm(), sys.argv[2]


def cache(folder: Path) -> None:
    corpus = Corpus.open(make_documents(120))
    settings = {"context": 16, "batch_size": 4, "shard_tokens": 300, "dtype": "bfloat16", "packing": PACKING, "n_tokens": 1300}
    write_store(folder, LM, ["resid_post.0", "heads.1"], corpus, progress=False, **settings)


def in_child(work: Callable[[], None], kill_after: float | None = None) -> bool:
    """Whether `work` got to its end in a child, which is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
    return not os.WIFSIGNALED(status)


def die_at(step: int) -> Callable[[], None]:
    """Makes the process kill itself at its `step`th call that changes the disk."""
    calls = 0

    def counted(function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def patch() -> None:
        for name in ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))

    return patch


def at_random_moments(root: Path, seconds: float) -> int:
    """Kills caches at random, each folder until one gets through; returns how many were killed."""
    generator = random.Random(0)
    kills = folders = 0
    while kills < 10:
        folder = root / f"killed{folders}"
        while not in_child(lambda folder=folder: cache(folder), kill_after=generator.uniform(0, 1) * seconds):
            kills += 1
        in_child(lambda folder=folder: cache(folder))
        folders += 1
    return kills


def at_every_step(root: Path) -> int:
    """Kills a cache at its first change of the disk, another one at its second, ...; returns how many were killed."""
    for steps in range(1000):
        folder, patch = root / f"step{steps}", die_at(steps + 1)

        def work(patch: Callable[[], None] = patch, folder: Path = folder) -> None:
            patch()
            cache(folder)

        if in_child(work):
            return steps
        in_child(lambda folder=folder: cache(folder))
    raise AssertionError


def main() -> None:
    root = Path(sys.argv[1])
    started = time.monotonic()
    in_child(lambda: cache(root / "whole"))
    seconds = time.monotonic() - started
    print(at_every_step(root) if sys.argv[3] == "steps" else at_random_moments(root, seconds))


main()
