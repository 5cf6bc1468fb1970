"""Runs of the steering bench that a workspace keeps, in `reports/bench/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, WorkspaceError
from saekit.files import write_whole
from saekit.json_files import read_json
from saekit.plugins import nearest
from saekit.workspace import access
from saekit.workspace.rankings import check_name

if TYPE_CHECKING:
    from saekit.workspace.folder import WorkspaceFolder

_MOST_BYTES = 1 << 23


def _folder(ws: WorkspaceFolder) -> Path:
    return ws.path / "reports" / "bench"


def names(ws: WorkspaceFolder) -> list[str]:
    """The names of the kept runs, in order."""
    return sorted(path.stem for path in _folder(ws).glob("*.json"))


def keep(ws: WorkspaceFolder, name: str, run: Mapping[str, Any]) -> Path:
    """Write a run whole or not at all, in place of another of that name; returns its file.

    Raises:
        ConfigError: no run can have that name.
        Unwritable, StorageFull: it cannot be written, or its folder is a symbolic link that leads out of the workspace.
    """
    path = _folder(ws) / f"{check_name(name, 'run')}.json"
    for each in (ws.reports, path.parent, path):
        access.check_link(ws.path, each)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def read(ws: WorkspaceFolder, name: str) -> Any:
    """The JSON values of a kept run.

    Raises:
        WorkspaceError: there is none of that name.
        ConfigError: its file is damaged.
    """
    kept = names(ws)
    if name not in kept:
        hint = nearest(name, kept) if kept else "The steering bench of `saekit serve` saves one."
        raise WorkspaceError(f"{ws.shown} has no run {name!r:.80}.", hint)
    return read_json(_folder(ws) / f"{name}.json", max_bytes=_MOST_BYTES, error=ConfigError, hint="Run it again.")
