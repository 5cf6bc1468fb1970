"""Changes of labels and lists in a finished database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from feature_db.arguments import unicode
from feature_db.errors import typed
from feature_db.labels.evidence import Label
from feature_db.labels.rules import HUMAN, HUMAN_RANK
from feature_db.store import checksums, connections, schema, set_aside
from feature_db.store.tables import add_labels, delete_dictionary, delete_orphans, next_id, refresh_fts
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
                db.execute("PRAGMA foreign_keys = OFF")  # impossible inside a transaction
                with self._changes(db):
                    schema.upgrade(db)
                db.execute("PRAGMA foreign_keys = ON")
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

    def set_label(self, feature: int, text: str) -> None:
        """Set the label by hand of the feature with this id; an empty text removes it."""
        text = unicode(text, "label").strip()
        with self.transaction() as db:
            db.execute("DELETE FROM label WHERE feature = ? AND method = ?", (feature, HUMAN))
            _add(db, feature, [Label(HUMAN, text, HUMAN_RANK, text)] if text else [])

    def add_labels(self, feature: int, labels: list[Label]) -> None:
        """Add labels, in place of those that the same methods, models and prompts gave the feature before."""
        for label in labels:
            unicode(label.text, "label")
            unicode(label.keywords, "label")
        with self.transaction() as db:
            for origin in {(label.method, label.model, label.prompt) for label in labels}:
                for table in ("label", "label_failure"):
                    same = "feature = ? AND method = ? AND model IS ? AND prompt IS ?"
                    db.execute(f"DELETE FROM {table} WHERE {same}", (feature, *origin))
            _add(db, feature, labels)

    def add_failure(self, feature: int, method: str, model: str, prompt: str, reason: str) -> None:
        """Record that a language model gave no usable label, in place of the record of an earlier failure."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        with self.transaction() as db:
            values = (feature, method, model, prompt, reason, created)
            db.execute("INSERT OR REPLACE INTO label_failure VALUES (?, ?, ?, ?, ?, ?)", values)

    def set_list(self, name: str, features: list[int]) -> None:
        """Replace the list of this name; an empty one removes it."""
        unicode(name, "name of a list")
        with self.transaction() as db:
            db.execute("DELETE FROM list WHERE name = ?", (name,))
            rows = [(name, position, feature) for position, feature in enumerate(features)]
            db.executemany("INSERT INTO list(name, position, feature) VALUES (?, ?, ?)", rows)

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


def _add(db: sqlite3.Connection, feature: int, labels: list[Label]) -> None:
    add_labels(db, feature, labels, next_id(db, "label"))
    refresh_fts(db, feature)
