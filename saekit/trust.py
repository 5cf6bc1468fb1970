"""Models whose own code the user has allowed to run on this machine.

A workspace records that its model needs code of its own. A workspace may come from somebody else, so that this record alone must
not run code: the user's own list decides.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_FILE = "models-that-may-run-code.txt"


def allow(model: str, revision: str = "") -> None:
    """Remember that a model may run its code. Nothing is remembered where the list cannot be written.

    Args:
        model: hub name or folder.
        revision: commit on the hub.
    """
    if allowed(model, revision):
        return
    with contextlib.suppress(OSError):
        _list().parent.mkdir(parents=True, exist_ok=True)
        with _list().open("a", encoding="utf-8") as file:
            file.write(f"{_entry(model, revision)}\n")


def allowed(model: str, revision: str = "") -> bool:
    """Whether a model of this name and commit may run its code."""
    try:
        return _entry(model, revision) in _list().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False


def _entry(model: str, revision: str) -> str:
    return f"{model}@{revision}" if revision else str(Path(model).expanduser().absolute())


def _list() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "saekit" / _FILE
