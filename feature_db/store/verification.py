"""Checks all of a finished database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from feature_db.effects.logits import unpack as unpack_logits
from feature_db.errors import code, damaged, typed
from feature_db.records import IndexedSAE
from feature_db.store import checksums, connections, read, schema, stored, token_lists, vectors
from feature_db.store.examples import unpack
from feature_db.store.statistics import unpack_histogram
from saekit.errors import DatabaseError

_FULL_TEXT = ("term_fts", "feature_fts")


def verify(path: Path, reading: Callable[[], AbstractContextManager[sqlite3.Connection]]) -> list[str]:
    """Check a database; see :meth:`feature_db.FeatureDB.verify`.

    Args:
        path: the file.
        reading: gives a connection that holds a read lock.
    """
    with reading() as db:
        remarks = _bytes(path, schema.version(db))
        structure(path, db)
        for sae in read.saes(db, path.parent):
            remarks += vectors.check(sae, read.files(db, sae.id).get("vectors"))
    unchecked = full_text(path)
    return remarks + (unchecked if remarks else [])  # where the bytes match, full-text search is as it was written


def sealed(path: Path, sae: IndexedSAE, reading: Callable[[], AbstractContextManager[sqlite3.Connection]]) -> bool:
    """Check the file and one dictionary's directions; returns whether the checksum says so, or only the structure does.

    Raises:
        DatabaseError: says what is damaged.
    """
    with reading() as db:
        vectors.check(sae, read.files(db, sae.id).get("vectors"))
        matches = not _bytes(path, schema.version(db))
        if not matches:
            structure(path, db)
    if not matches:
        full_text(path)
    return matches


def _bytes(path: Path, version: int) -> list[str]:
    """Compare the file with its checksum."""
    if connections.pending(path):
        return [f"{path.name} is being written: its checksum was not checked."]
    try:
        state = checksums.state(path)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read: {error}.", "Check its permissions.") from error
    if state is checksums.State.DIFFERS:
        what = f"its bytes do not match the checksum in {checksums.checksum_path(path).name}"
        raise damaged(path, f"{what}, or another program has changed it")
    if state is checksums.State.MATCHES:
        return []
    if version < 2:
        return [f"{path.name} was made before checksums were recorded: index again to have them (labels are kept)."]
    return [f"{path.name} has no checksum, since the last change did not end: index again to have it (labels are kept)."]


def structure(path: Path, db: sqlite3.Connection) -> None:
    """Check pages, indices, references, numbers of rows, examples and histograms.

    Raises:
        DatabaseError: says what is damaged.
    """
    for pragma in ("integrity_check", "foreign_key_check"):
        problems = [row for row in db.execute(f"PRAGMA {pragma}") if row != ("ok",)]
        if problems:
            raise damaged(path, problems[0])
    for sae in read.saes(db, path.parent):
        _features(db, sae)


def _features(db: sqlite3.Connection, sae: IndexedSAE) -> None:
    sql = "SELECT COUNT(*), COUNT(windows) FROM feature LEFT JOIN example ON feature = id WHERE sae = ?"
    features, examples = db.execute(sql, (sae.id,)).fetchone()
    if (features, examples) != (sae.n_features, sae.n_features):
        cause = f"{features} rows and {examples} examples for {sae.n_features} features"
        raise damaged(f"the features of {sae.dictionary}", cause)
    sql = "SELECT histogram, windows, logit_histogram FROM example JOIN feature ON id = feature WHERE sae = ?"
    for row in db.execute(sql, (sae.id,)):
        kinds = (stored.BLOB, stored.BLOB, stored.BLOB_OR_NONE)
        histogram, windows, logits = stored.row(f"the features of {sae.dictionary}", row, *kinds)
        unpack_histogram(histogram)
        unpack(windows)
        if logits is not None:
            unpack_logits(logits)
    span = (schema.feature_id(sae.id, 0), schema.feature_id(sae.id + 1, 0) - 1)
    for (entries,) in db.execute("SELECT entries FROM token_list WHERE feature BETWEEN ? AND ?", span):
        token_lists.check(entries, f"the words of {sae.dictionary}")


def full_text(path: Path) -> list[str]:
    """Check that full-text search finds what the tables hold; returns what could not be checked.

    SQLite makes this check only on a connection that may write, although it writes nothing.

    Raises:
        DatabaseError: the index is damaged.
    """
    unchecked = [f"The full-text index of {path.name} was not compared with its tables: the file cannot be written."]
    try:
        db = connections.writing(path)
    except DatabaseError:
        return unchecked
    try:
        for table in _FULL_TEXT:
            db.execute("BEGIN IMMEDIATE")
            db.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")
            db.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if code(error) not in connections.CANNOT_WRITE:
            raise
        return unchecked
    except sqlite3.DatabaseError as error:
        with typed(f"the full-text index of {path}"):
            raise error
    finally:
        db.close()
    return []
