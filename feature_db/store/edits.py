"""Changes that people make to a finished database: labels and lists."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from feature_db.errors import typed
from feature_db.store import checksums, connections
from saekit.errors import DatabaseError

if TYPE_CHECKING:
    import sqlite3


class Edits:
    """Transactions on one database, and its checksum after the last.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._intact: bool | None = None
        """Whether the checksum matched before the first change; only then is there something to record after the last."""

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection to write with. All changes are made when the block ends, none when it raises.

        Raises:
            DatabaseError: the database is locked, damaged or not writable.
            StorageFull: the disk is full.
        """
        with self._lock, typed(self._path):
            db = connections.writing(self._path)
            try:
                db.execute("BEGIN IMMEDIATE")
                self._begin()
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                db.close()

    def _begin(self) -> None:
        try:
            if self._intact is None:
                self._intact = checksums.state(self._path) is checksums.State.MATCHES
            checksums.remove(self._path)
        except OSError as error:
            hint = "Check its permissions and those of its folder."
            raise DatabaseError(f"{self._path} cannot be written: {error.strerror or error}.", hint) from error

    def end(self) -> None:
        """Record the checksum, if there were changes."""
        with self._lock:
            if self._intact:
                connections.seal(self._path)
            self._intact = None
