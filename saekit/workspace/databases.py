"""Comparing and merging the feature databases of workspaces, or database files alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from saekit import files
from saekit.errors import Unwritable, WorkspaceError, shown_path
from saekit.ledger import Ledger
from saekit.workspace.study import FILE

if TYPE_CHECKING:
    from feature_db.exchange import Difference, Merged

DATABASE = "features.sqlite"


def database_file(path: str | Path) -> Path:
    """The database that a user means: that of a workspace, or the file itself.

    Raises:
        WorkspaceError: there is none.
    """
    path = Path(path)
    found = path / DATABASE if path.is_dir() else path
    if not found.is_file():
        raise WorkspaceError(
            f"{shown_path(path)} has no feature database.", "Give a workspace that is indexed, or a database file."
        )
    return found


def merge(first: str | Path, second: str | Path, folder: str | Path) -> Merged:
    """Merge two databases into a new folder (:func:`feature_db.exchange.merge`).

    Where the first is that of a workspace, the new folder is a workspace with the same study, so that commands search it. It has
    no activations and no dictionaries.

    Args:
        first, second: workspaces, or database files.
        folder: to be made.

    Raises:
        WorkspaceError: there is no such database.
        DatabaseError: one is damaged or of another version.
        Unwritable, StorageFull: the folder cannot be written.
    """
    from feature_db.exchange import merge as merge_files

    databases = database_file(first), database_file(second)
    merged = merge_files(*databases, folder)
    study = databases[0].parent / FILE
    if study.is_file():
        try:
            shutil.copyfile(study, Path(folder) / FILE)
            adopt(Path(folder))
        except OSError as error:
            raise Unwritable(
                f"{FILE} could not be copied to {shown_path(folder)}: {error.strerror}.", "Copy it yourself."
            ) from error
    return merged


def adopt(folder: Path) -> None:
    """Begin the ledger of a workspace that was made in another folder, with the checksums of its files.

    Raises:
        OSError: the ledger cannot be written.
    """
    Ledger(folder).create()
    for path in (folder / FILE, folder / "vectors"):
        if path.exists():
            files.record(path)


def diff(first: str | Path, second: str | Path) -> Difference:
    """How the second database differs from the first (:func:`feature_db.exchange.diff`).

    Args:
        first, second: workspaces, or database files.

    Raises:
        WorkspaceError: there is no such database.
        DatabaseError: one is damaged or of a newer version.
    """
    from feature_db.exchange import diff as compare

    return compare(database_file(first), database_file(second))
