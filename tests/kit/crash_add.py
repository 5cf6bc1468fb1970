"""Adding a dictionary in processes that are killed at each change of the disk. Run by tests/cli/test_add.py; prints the kills."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from saekit.sae import load_from
from saekit.workspace import Workspace, imports
from saekit.workspace.study import Study
from tests.kit.crash import die_at, killed
from tests.kit.planted import SITE, make_lm, make_sae

torch.set_num_threads(1)
LM = make_lm()


def workspace(folder: Path) -> Workspace:
    ws = Workspace(folder, Study(model="tiny", sites=(str(SITE),), data="none"))
    ws._model = LM
    return ws


def add(folder: Path, source: Path) -> None:
    ws = workspace(folder)
    found = imports.check(ws, source, load_from(source), name="new")
    with ws.writing():
        imports.add(ws, found)


def main(root: Path) -> None:
    source = root / "source"
    make_sae().save(source)
    add(root / "whole", source)
    whole = {path.name: path.read_bytes() for path in (root / "whole" / "sae" / str(SITE) / "new").iterdir()}
    for step in range(1000):
        folder, patch = root / f"step{step}", die_at(step + 1)

        def work(patch: Callable[[], None] = patch, folder: Path = folder) -> None:
            patch()
            add(folder, source)

        if not killed(work):
            print(step)
            return
        ws = workspace(folder)
        there = ws.dictionaries.all() if folder.exists() else []
        assert there in ([], [(str(SITE), "new")]), there
        if there:
            assert ws.sae(f"{SITE}@new").fingerprint() == make_sae().fingerprint()
        if (folder / "saekit.toml").exists():
            damaged = [part for part in ws.check(progress=False).damaged if part.name.startswith("sae")]
            assert not damaged, damaged
        add(folder, source)
        now = {path.name: path.read_bytes() for path in (folder / "sae" / str(SITE) / "new").iterdir()}
        assert now == whole, (step, sorted(now))
    raise AssertionError


main(Path(sys.argv[1]))
