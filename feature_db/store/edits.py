"""Changes of labels and lists in a finished database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from feature_db.errors import typed
from feature_db.store import checksums, connections, schema, set_aside
from feature_db.store.tables import delete_dictionary, delete_orphans
from saekit.errors import DatabaseError

if TYPE_CHECKING:
    import sqlite3


class Edits:
    """Transactions that change one database. The checksum is recorded after the last one.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._intact: bool | None = None
        """Whether the checksum matched before the first change; only then is it recorded after the last."""

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection to write with. All changes are made when the block ends, none when it raises.

        The tables of an earlier version are upgraded first, in a transaction of their own.

        Raises:
            DatabaseError: the database is locked, damaged or not writable.
            StorageFull: the disk is full.
        """
        with self._lock, typed(self._path), connections.changing(self._path) as db:
            if schema.version(db) < schema.VERSION:
                with schema.upgrading(db):
                    self._begin()
                    schema.upgrade(db)
            with self._changes(db):
                yield db

    @contextmanager
    def _changes(self, db: sqlite3.Connection) -> Iterator[None]:
        try:
            db.execute("BEGIN IMMEDIATE")
            self._begin()
            yield
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def add_failure(self, feature: int, method: str, model: str, prompt: str, reason: str) -> None:
        """Record that a language model gave no usable label, in place of the record of an earlier failure."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        with self.transaction() as db:
            values = (feature, method, model, prompt, reason, created)
            db.execute("INSERT OR REPLACE INTO label_failure VALUES (?, ?, ?, ?, ?, ?)", values)

    def forget(self, sae: int, fingerprint: str) -> None:
        """Remove a dictionary. Its labels by people and its list entries are set aside."""
        with self.transaction() as db:
            set_aside.put(db, sae, fingerprint)
            delete_dictionary(db, sae)
            set_aside.bring_all_back(db)
            delete_orphans(db)

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
