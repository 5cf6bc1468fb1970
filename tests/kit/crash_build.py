"""Builds in processes that are killed repeatedly until one finishes. Run by test_resume.py; prints JSON.

The parent has imported and compiled everything before it forks, so that children start quickly.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from feature_db import BuildConfig, build
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
    print(json.dumps({"kills": kills, "resumed": resumed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
