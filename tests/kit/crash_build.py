"""Builds in processes that are killed repeatedly until one finishes. Run by test_resume.py; prints JSON.

The parent has imported and compiled everything before it forks, so that children start quickly.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from feature_db import BuildConfig, build
from feature_db.index import streaming
from saekit.names.dictionary import stem
from tests.kit.crash import killed
from tests.kit.old_databases import as_version_2
from tests.kit.planted import SITE, PlantedStore, make_lm, make_sae, make_store


def index(path: Path, lm: Any, store: PlantedStore, name: str = "", seed: int = 0) -> None:
    config = BuildConfig(batch_tokens=200)
    build(
        path, store=store, sae=make_sae(seed), lm=lm, site=SITE, vectors=path.parent / "vectors",
        name=name, config=config, checkpoint_seconds=0, progress=False,
    ).close()  # fmt: skip


def checkpoints(state: Path, n: int) -> Callable[[], bool]:
    """True once `state` was written n times."""
    seen: set[int] = {state.stat().st_mtime_ns} if state.exists() else set()
    n += len(seen)

    def now() -> bool:
        with contextlib.suppress(FileNotFoundError):
            seen.add(state.stat().st_mtime_ns)
        return len(seen) >= n

    return now


def writing(database: Path, size: int) -> Callable[[], bool]:
    """True once the new database, or the log of a transaction in the old one, is `size` bytes long."""

    def now() -> bool:
        for log in [database.with_name(database.name + "-wal"), *database.parent.glob(f".saekit-*/{database.name}")]:
            with contextlib.suppress(FileNotFoundError):  # the file may vanish in between
                if log.stat().st_size >= size:
                    return True
        return False

    return now


class Clocked(PlantedStore):
    """A store that takes a second for each block, by a clock of its own, and ends the process after some of them."""

    clock, last, saving = 0.0, 0, 0.0
    log = Path()

    def stream(self, sites: Any, **how: Any) -> Any:
        for block in super().stream(sites, **how):
            self.clock += 1
            with self.log.open("a") as log:
                log.write(f"{self.clock} {block.start + len(block.tokens_N)}\n")
            if self.clock > self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            yield block

    def savez(self, *args: Any, **arrays: Any) -> None:
        """A save that takes `saving` seconds."""
        self.clock += self.saving
        np.savez(*args, **arrays)


def lost(folder: Path, lm: Any, store: PlantedStore, saving: float, last: int) -> float:
    """Seconds of work that a kill after `last` seconds costs, with the default interval and saves that take `saving` seconds."""
    clocked = Clocked(**vars(store))
    path = folder / f"clocked-{saving}-{last}" / "f.sqlite"
    path.parent.mkdir()
    clocked.last, clocked.saving, clocked.log = last, saving, path.parent / "log"

    def run() -> None:
        streaming.time = SimpleNamespace(monotonic=lambda: clocked.clock)  # type: ignore[assignment]
        streaming.np = SimpleNamespace(**{**vars(np), "savez": clocked.savez})  # type: ignore[assignment]
        build(
            path, store=clocked, sae=make_sae(), lm=lm, site=SITE, vectors=path.parent / "vectors",
            config=BuildConfig(batch_tokens=24), progress=False,
        ).close()  # fmt: skip

    assert killed(run)
    times = {int(row): float(clock) for clock, row in (line.split() for line in clocked.log.read_text().splitlines())}
    state = next(path.parent.glob("*.npz"), None)
    return max(times.values()) - (0.0 if state is None else times[int(np.load(state)["row"])])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    lm = make_lm()
    store = make_store(lm)
    builds = [("", 0), ("second", 1)]  # two dictionaries of one site
    for name, seed in builds:
        index(folder / "straight" / "f.sqlite", lm, store, name, seed)

    path = folder / "killed" / "f.sqlite"
    kills, resumed = 0, 0
    for name, seed in builds:
        state = path.with_name(f"{path.name}.{stem(SITE, name)}.state.npz")
        moments = [checkpoints(state, n) for n in (1, 4)] + [writing(path, size) for size in (1, 100_000, 300_000)]
        for now in [*moments, lambda: False]:
            resumed += state.exists()
            kills += killed(lambda n=name, s=seed: index(path, lm, store, n, s), now)  # type: ignore[misc]

    # Kills during a replacement: afterwards, the old or the new dictionary must be complete.
    shutil.copytree(folder / "straight", folder / "replaced")
    index(folder / "replaced" / "f.sqlite", lm, store, seed=5)
    kills += killed(lambda: index(path, lm, store, seed=5), writing(path, 200_000))

    # Kills while a database of an earlier version is upgraded.
    old = folder / "old" / "f.sqlite"
    index(old, lm, store)
    as_version_2(old)
    for size in (1, 100_000, 300_000):
        kills += killed(lambda: index(old, lm, store, "second", 1), writing(old, size))
    index(old, lm, store, "second", 1)
    costs = {saving: [lost(folder, lm, store, saving, last) for last in (9, 14, 19, 30)] for saving in (0.0, 0.5, 2.0)}
    print(json.dumps({"kills": kills, "resumed": resumed, "lost": costs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
