"""Rankings of a workspace: kept in `rankings/`, and read from there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from saekit.errors import ConfigError, WorkspaceError
from saekit.plugins import nearest
from saekit.workspace import access

if TYPE_CHECKING:
    from saekit.tasks import Ranking
    from saekit.workspace.folder import WorkspaceFolder

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,199}")


def check_name(name: str, what: str = "ranking") -> str:
    """The name, if a ranking, or another object, can be kept under it.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"A {what} cannot be called {name!r:.80}.", "Use letters, digits, and any of _ . + @ - within the name."
        )
    return name


def file_of(ws: WorkspaceFolder, name: str) -> Path:
    """The file of a ranking, or where it will be."""
    return ws.path / "rankings" / f"{check_name(name.removesuffix('.json'))}.json"


def names(ws: WorkspaceFolder) -> list[str]:
    """The names of the kept rankings, in order."""
    return sorted(path.stem for path in (ws.path / "rankings").glob("*.json"))


def keep(ws: WorkspaceFolder, name: str, ranking: Ranking) -> Path:
    """Write a ranking whole or not at all, in place of another of that name; returns its file.

    Raises:
        ConfigError: no ranking can have that name.
        Unwritable, StorageFull: it cannot be written, or `rankings/` is a symbolic link that leads out of the workspace.
    """
    path = file_of(ws, name)
    access.check_link(ws.path, path.parent)
    access.check_link(ws.path, path)
    ranking.save(path)
    return path


def read(ws: WorkspaceFolder, name: str) -> Ranking:
    """A kept ranking.

    Raises:
        WorkspaceError: there is none of that name.
        ConfigError: its file is damaged.
    """
    from saekit.tasks import Ranking

    path = file_of(ws, name)
    if not path.exists():
        kept = names(ws)
        hint = nearest(name, kept) if kept else f"`saekit locate {ws.shown} --task T` makes one."
        raise WorkspaceError(f"{ws.shown} has no ranking {name!r}.", hint)
    return Ranking.load(path)
