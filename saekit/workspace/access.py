"""Writing into a workspace: one command at a time, and never outside of it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from saekit import files
from saekit.errors import StorageFull, Unwritable, WorkspaceError
from saekit.ledger import FILE as LEDGER
from saekit.ledger import Ledger
from saekit.locks import lock
from saekit.workspace.jobs import LOCK

_log = logging.getLogger(__name__)


def check_free(path: Path) -> None:
    """Raise unless a new workspace can be made at `path`.

    Raises:
        WorkspaceError: something is there that is not what a killed :func:`create` leaves.
    """
    if not path.exists():
        return
    if not path.is_dir() or any(item.name != LEDGER and not files.is_leftover(item.name) for item in path.iterdir()):
        raise WorkspaceError(f"{path} exists and is not a workspace.", "Choose another --out folder.")


def create(root: Path) -> None:
    """Make the folder of a workspace, and its ledger.

    Raises:
        Unwritable, StorageFull: they cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        Ledger(root).create()
    except OSError as error:
        raise files.unwritable(root, error) from error


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold the workspace in `root` for writing; the lock ends with the process, however the process ends.

    Temporary files of commands that were killed are removed.

    Raises:
        WorkspaceError: another command is writing there, or a symbolic link in it leads outside.
        Unwritable, StorageFull: nothing can be written there.
    """
    busy = WorkspaceError(f"Another saekit command is writing to {root}.", "Wait for it to end.")
    with lock(root / LOCK, busy):
        folders = list(_folders(root))
        for folder in folders:
            for item in os.scandir(folder):
                check_link(root, Path(item.path))
        for folder in folders:
            files.clean(folder)
        ledger = Ledger(root)
        try:
            ledger.create()
            if (text := ledger.compacted()) is not None:
                files.write_whole(ledger.path, text, checksum=False)
        except OSError as error:
            raise files.unwritable(ledger.path, error) from error
        yield


def _folders(root: Path) -> Iterator[Path]:
    """All folders below `root` that saekit writes to; Weights & Biases has folders of its own, with links to its logs."""
    for folder, inside, _ in os.walk(root):
        yield Path(folder)
        if "wandb" in inside and not (Path(folder) / "wandb").is_symlink():
            inside.remove("wandb")


def check_link(root: Path, path: Path) -> None:
    """Raise where `path` is a symbolic link that leads out of the folder `root`, so that writing to it would change other files.

    Raises:
        Unwritable: it does; the message names both ends.
    """
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise Unwritable(
            f"{path} is a symbolic link to {os.path.realpath(path)}, outside of the workspace; saekit does not write there.",
            "Put a folder or file of its own in its place, or make the whole workspace on that disk.",
        )


@dataclass
class Kept:
    """Whether an optional file was written."""

    done: bool = False


@contextlib.contextmanager
def optional(what: str) -> Iterator[Kept]:
    """Go on where nothing can be written: a warning says that `what` is not kept.

    For commands whose result is worth having on a read-only or full disk.
    """
    kept = Kept()
    try:
        yield kept
        kept.done = True
    except (Unwritable, StorageFull) as error:
        _log.warning("%s is not kept: %s", what, error.what)
