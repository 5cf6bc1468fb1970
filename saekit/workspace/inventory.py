"""The files of a workspace by part, without reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from saekit.files import is_leftover

PARTS = {
    "activations": "cached activations",
    "dictionaries": "dictionaries",
    "checkpoints": "states of unfinished training and indexing",
    "database": "features",
    "vectors": "decoder directions",
    "rankings": "rankings",
    "graphs": "attribution graphs",
    "lenses": "fitted lenses",
    "steering": "steering vectors and interventions",
    "reports": "evaluations and pages",
    "temporary": "temporary files",
    "other": "other files",
}
"""Parts of a workspace, and what each holds."""
_FOLDERS = {
    "activations": "activations",
    "vectors": "vectors",
    "rankings": "rankings",
    "graphs": "graphs",
    "lenses": "lenses",
    "steering": "steering",
    "reports": "reports",
    "sae": "dictionaries",
}
_DATABASE, _STATE = "features.sqlite", ".state.npz"


class StoredFile(NamedTuple):
    """A file of a workspace."""

    path: Path
    part: str
    """A key of :data:`PARTS`."""
    bytes: int
    changed: float
    """Unix time of its last change."""


def stored_files(root: Path) -> Iterator[StoredFile]:
    """All files below `root`. Symbolic links are not followed; what cannot be read is left out."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            try:
                facts = path.lstat()
            except OSError:
                continue
            yield StoredFile(path, part_of(path.relative_to(root)), facts.st_size, facts.st_mtime)


def part_of(relative: Path) -> str:
    """The part of a workspace that a file belongs to, given its path in the workspace."""
    top, *_ = parts = relative.parts
    if any(map(is_leftover, parts)):
        return "temporary"
    if top == "sae" and "checkpoints" in parts:
        return "checkpoints"
    if top.startswith(_DATABASE):
        return "checkpoints" if top.endswith(_STATE) else "database"
    return _FOLDERS.get(top, "other")


def sizes(root: Path) -> dict[str, int]:
    """Bytes of each part, and the `total`."""
    found = dict.fromkeys(PARTS, 0)
    for file in stored_files(root):
        found[file.part] += file.bytes
    return {**found, "total": sum(found.values())}
