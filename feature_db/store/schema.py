"""The SQLite file: making one, opening one, and knowing whether it is ours and of a version that we read."""

from __future__ import annotations

import os
import sqlite3
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from feature_db.errors import typed
from saekit.errors import DatabaseError

VERSION = 1
APPLICATION = 0x5AE817DB
FEATURES_PER_SAE = 1 << 24
_NOT_OURS = "Give the features.sqlite of a workspace."
ROLES = {name: i for i, name in enumerate(("fires_word", "fires_token", "peaks", "before", "context", "promotes", "suppresses"))}
"""Ids of the `role` table."""


def feature_id(sae: int, number: int) -> int:
    """Primary key of feature `number` of dictionary `sae`."""
    return sae * FEATURES_PER_SAE + number


def create(path: Path) -> sqlite3.Connection:
    """A new, empty database at `path`, which must not exist."""
    with typed(path):
        connection = _connect(path, "rwc")
        script = resources.files("feature_db.store").joinpath("schema.sql").read_text()
        connection.executescript(
            f"BEGIN; {script} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
        )
        return connection


def connect(path: Path) -> sqlite3.Connection:
    """Open the database at `path`.

    Raises:
        DatabaseError: there is none, it is no feature database, it is damaged, or a newer version of saekit wrote it.
    """
    if not path.is_file():
        raise DatabaseError(f"There is no feature database at {path}.", "`saekit index` or `saekit fit` makes one.")
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":  # SQLite itself would take an empty file for an empty database
            raise DatabaseError(f"{path} is not a feature database.", _NOT_OURS)
    with typed(path):
        connection = _connect(path, "rw")
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if application != APPLICATION:
                raise DatabaseError(f"{path} is not a feature database.", _NOT_OURS)
            if version > VERSION:
                raise DatabaseError(
                    f"{path} was written in format {version}; this saekit reads up to {VERSION}.",
                    "Upgrade saekit: pip install -U saekit.",
                )
            connection.execute("SELECT COUNT(*) FROM sae").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):  # a write-ahead log needs files beside the database, and nobody can be writing to it here
        mode = "ro&immutable=1"
    connection = sqlite3.connect(f"file:{quote(str(folder / path.name))}?mode={mode}", uri=True, isolation_level=None, timeout=30)
    connection.execute("PRAGMA foreign_keys = ON")
    if mode.startswith("rw"):
        connection.execute("PRAGMA page_size = 8192")  # of a new file: two or three features' examples, where 4096 would hold one
        connection.execute("PRAGMA journal_mode = WAL")  # readers go on while a build commits
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -65536")  # KiB
    return connection
