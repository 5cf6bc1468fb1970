"""The workspaces below a folder: what `saekit list` prints."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

from saekit.errors import SaekitError, WorkspaceError, shown_path
from saekit.views.workspace import workspace_row
from saekit.workspace.study import FILE

_MOST_FOLDERS = 20_000


def workspaces_view(folder: str | Path, depth: int = 4) -> dict[str, Any]:
    """Every workspace in `folder` and below it. Symbolic links and hidden folders are not followed.

    Args:
        depth: how many folders deep to look.

    Returns:
        workspaces: :func:`saekit.views.workspace.workspace_row` of each, by path.
        unread: folders that could not be read, or that were left out since there were more than 20,000.

    Raises:
        WorkspaceError: there is no such folder.
    """
    start = Path(folder)
    if not start.is_dir():
        raise WorkspaceError(f"There is no folder {shown_path(start)}.", "Give a folder that exists.")
    rows: list[dict[str, Any]] = []
    waiting, unread, looked = deque([(start, 0)]), 0, 0
    while waiting:
        here, level = waiting.popleft()
        looked += 1
        if looked > _MOST_FOLDERS:
            unread += len(waiting) + 1
            break
        try:
            items = sorted(os.scandir(here), key=lambda item: item.name)
        except OSError:
            unread += 1
            continue
        if any(item.name == FILE for item in items):
            rows.append(_row(here))
        elif level < depth:
            inside = [item for item in items if not item.name.startswith(".") and item.is_dir(follow_symlinks=False)]
            waiting.extend((Path(item.path), level + 1) for item in inside)
    return {"workspaces": sorted(rows, key=lambda row: row["workspace"]), "unread": unread}


def _row(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"workspace": shown_path(path)}
    try:
        return workspace_row(path) | row
    except SaekitError as error:
        row |= {"model": None, "data": None, "tokens": 0, "dictionaries": [], "bytes": 0}
        return row | {"state": "damaged", "changed": None, "problem": error.what}
