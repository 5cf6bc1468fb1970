"""Errors of the feature database, in the project's types."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from saekit.errors import DatabaseError, StorageFull

RESTORE = (
    "Restore the file from a copy. Without a copy, move it to another folder and run `saekit index`, which makes all of it again "
    "except labels and lists by people: those are only in this file, so keep it."
)
_UNDECODABLE = "Could not decode to UTF-8"  # how Python's sqlite3 begins its error about a TEXT column; the error has no code


def damaged(what: object, cause: object) -> DatabaseError:
    """The error for content that saekit never writes."""
    return DatabaseError(f"The feature database is damaged at {what}: {cause}.", RESTORE)


def code(error: sqlite3.Error) -> int:
    """SQLite's primary result code of an error; 0 where SQLite itself reported none (wrong thread, closed connection)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def typed(path: object) -> Iterator[None]:
    """Turn SQLite's errors about the file at `path` into typed errors. All other exceptions pass through unchanged.

    Raises:
        StorageFull: the disk is full.
        DatabaseError: the file is damaged, locked, not readable or not writable.
    """
    try:
        yield
    except sqlite3.Error as error:
        known = _known(path, error)
        if known is None:  # a mistake in the calling code, such as wrong SQL or a connection that another thread made
            raise
        raise known from error


def _known(path: object, error: sqlite3.Error) -> DatabaseError | StorageFull | None:
    number = code(error)
    if number in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(error).startswith(_UNDECODABLE):
        return damaged(path, error)
    if number == sqlite3.SQLITE_FULL:
        return StorageFull(f"No room for {path}: {error}.", "Free some space and run the same command again.")
    if number in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseError(f"{path} is locked by another process: {error}.", "Wait for that process to end.")
    if number in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return DatabaseError(f"{path} cannot be opened or written: {error}.", "Check its permissions and those of its folder.")
    if number in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS):
        hint = "Check that the disk works, has room and is within its quota, and that the file system supports locks."
        return DatabaseError(f"{path} cannot be read or written: {error}.", hint)
    return None
