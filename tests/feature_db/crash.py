"""Builds in processes that are killed, again and again, until one gets through. Run by test_resume.py; prints JSON.

Children are forked from a process that has everything imported and compiled, so that a kill costs no start-up.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from feature_db import BuildConfig, build, write
from saekit.lm import Site
from tests.feature_db.planted import SITE, PlantedStore, make_lm, make_sae, make_store

KILLS = 8


class SlowStore(PlantedStore):
    """Takes its time over every block, so that a kill can hit the pass anywhere."""

    def stream(self, *args: Any, **settings: Any) -> Any:
        for block in super().stream(*args, **settings):
            time.sleep(0.002)
            yield block


def index(path: Path, lm: Any, store: PlantedStore, site: Site = SITE, seed: int = 0) -> None:
    config = BuildConfig(batch_tokens=300)
    build(
        path, store=store, sae=make_sae(seed), lm=lm, site=site, vectors=path.parent / "vectors",
        config=config, checkpoint_seconds=0, progress=False,
    ).close()  # fmt: skip


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
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the build failed"
    return not os.WIFSIGNALED(status)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    lm, rng = make_lm(), random.Random(0)
    store = SlowStore(**vars(make_store(lm)))
    begun = time.monotonic()
    index(folder / "straight" / "f.sqlite", lm, store)
    index(folder / "straight" / "f.sqlite", lm, store, Site("mlp_out", 0), seed=1)
    took = time.monotonic() - begun

    path = folder / "killed" / "f.sqlite"
    kills, resumed, visible = 0, 0, 0
    for site, seed in ((SITE, 0), (Site("mlp_out", 0), 1)):
        state = path.with_name(f"{path.name}.{site}.state.npz")
        for attempt in range(100):
            resumed += state.exists()
            # The longest a child may live grows, so that some die in the pass and some in the transaction.
            done = in_child(lambda s=site, n=seed: index(path, lm, store, s, n), rng.uniform(0, took * (1 + attempt) / KILLS))  # type: ignore[misc]
            visible += path.exists()
            kills += not done
            if done:
                break

    # In the middle of the transaction that replaces a dictionary: the old one must be all there afterwards.
    def die(*_: Any) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def replace() -> None:
        write.add_labels = die
        index(path, lm, store, seed=5)

    assert not in_child(replace)
    print(json.dumps({"kills": kills, "resumed": resumed, "left": sorted(p.name for p in path.parent.iterdir())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
