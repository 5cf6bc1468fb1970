"""Errors of the database in the project's types."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from saekit.errors import DatabaseError, StorageFull

_REBUILD = "Restore it, or remove it and index again."


def damaged(what: str, cause: object) -> DatabaseError:
    """The database holds something that it cannot hold."""
    return DatabaseError(f"The feature database is damaged at {what}: {cause}.", _REBUILD)


@contextmanager
def typed(path: object) -> Iterator[None]:
    """Turn what goes wrong with the file at `path` into errors that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "full" in text:
            raise StorageFull(f"No room for {path}: {text}.", "Make room and run the same command again.") from error
        if "locked" in text or "busy" in text:
            raise DatabaseError(f"{path} is being written by another process.", "Wait for it to end.") from error
        if "readonly" in text or "unable to open" in text:
            raise DatabaseError(f"{path} cannot be opened: {text}.", "Check its permissions and those of its folder.") from error
        raise damaged(str(path), text) from error
    except (ValueError, TypeError, IndexError, KeyError) as error:  # a row is missing, or a column holds what it cannot hold
        raise damaged(str(path), error) from error
