"""The tables of a feature database: their SQL, their version, and the check that a file holds these tables and no triggers."""

from __future__ import annotations

import re
import sqlite3
from functools import cache
from importlib import resources
from pathlib import Path

from feature_db.errors import damaged
from saekit.errors import DatabaseError

VERSION = 4
"""Version 1 had no tables `file`, `set_aside_label` and `set_aside_list`. Up to version 2, a site had one dictionary, and `sae`
no column `name`. Up to version 3, there was no table `class_stat`. All are read, and upgraded by the next build."""
APPLICATION = 0x5AE817DB
FEATURES_PER_SAE = 1 << 24
ROLES = {name: i for i, name in enumerate(("fires_word", "fires_token", "peaks", "before", "context", "promotes", "suppresses"))}
"""Ids of the `role` table."""
_NOT_OURS = "Give the features.sqlite of a workspace."
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_ADDED_IN_2 = ("file", "set_aside_label", "set_aside_list")
_ADDED_IN_4 = ("class_stat",)
_SAE_BEFORE_3 = """
    CREATE TABLE sae (
        id INTEGER PRIMARY KEY, site TEXT NOT NULL UNIQUE, site_out TEXT NOT NULL, corpus INTEGER NOT NULL REFERENCES corpus(id),
        key TEXT NOT NULL, fingerprint TEXT NOT NULL, model TEXT NOT NULL, architecture TEXT NOT NULL,
        n_features INTEGER NOT NULL, n_live INTEGER NOT NULL, d_out INTEGER NOT NULL, vectors TEXT NOT NULL )
"""
_STATISTICS = ("sqlite_stat1", "sqlite_stat4")  # ANALYZE makes these

Objects = dict[tuple[str, str], str]
"""(type, name) of a table or index -> its SQL without comments and extra white space."""


def feature_id(sae: int, number: int) -> int:
    """Primary key of feature `number` of dictionary `sae`."""
    return sae * FEATURES_PER_SAE + number


def check_header(path: Path) -> bytes:
    """Check the first bytes of a file before SQLite opens it; returns them.

    Raises:
        DatabaseError: there is no file, it is no feature database, or a newer version of saekit wrote it.
    """
    if not path.is_file():
        raise DatabaseError(f"There is no feature database at {path}.", "`saekit index` or `saekit fit` makes one.")
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    # SQLite would take an empty file for an empty database.
    if header[:16] != _MAGIC or len(header) < _HEADER_BYTES:
        raise DatabaseError(f"{path} is not a feature database.", _NOT_OURS)
    _check_version(path, int.from_bytes(header[68:72], "big"), int.from_bytes(header[60:64], "big"))
    return header


def _check_version(path: Path, application: int, number: int) -> None:
    if application != APPLICATION:
        raise DatabaseError(f"{path} is not a feature database.", _NOT_OURS)
    if number > VERSION:
        raise DatabaseError(
            f"{path} was written in format {number}; this saekit reads up to {VERSION}.",
            "Upgrade saekit: pip install -U saekit.",
        )


def create(db: sqlite3.Connection) -> None:
    """Make all tables in an empty database."""
    roles = ", ".join(f"({number}, '{name}')" for name, number in ROLES.items())
    db.executescript(
        f"BEGIN; {_script()} INSERT INTO role (id, name) VALUES {roles}; "
        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    )


def upgrade(db: sqlite3.Connection) -> None:
    """Bring the tables of a database of an earlier version to this one, inside the caller's transaction.

    Foreign keys must be off: SQLite changes a table by making it again, and would delete the rows that refer to it.
    """
    found = version(db)
    if found < 2:
        for name in _ADDED_IN_2:
            db.execute(_expected()["table", name])
    if found < 3:
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(sae)")]
        db.execute(_expected()["table", "sae"].replace("CREATE TABLE sae", "CREATE TABLE sae_3", 1))
        db.execute(f"INSERT INTO sae_3 ({', '.join(columns)}, name) SELECT {', '.join(columns)}, '' FROM sae")
        db.execute("DROP TABLE sae")
        db.execute("ALTER TABLE sae_3 RENAME TO sae")
    if found < 4:
        for name in _ADDED_IN_4:
            db.execute(_expected()["table", name])
    if found < VERSION:
        db.execute(f"PRAGMA user_version = {VERSION}")


def version(db: sqlite3.Connection) -> int:
    """The version of the database's tables."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def check(db: sqlite3.Connection, path: Path) -> None:
    """Check that the database holds the tables and indices of saekit as saekit made them, and no trigger.

    Someone else may have made the file: a trigger, a view in place of a table, or a column with an expression would run when
    the database is used. Views and tables of other names are allowed, since nothing here uses them.

    Raises:
        DatabaseError: a table or index is missing or has been changed, there is a trigger, it is no feature database, or a newer
            version of saekit wrote it.
    """
    _check_version(path, db.execute("PRAGMA application_id").fetchone()[0], version(db))
    expected = _expected()
    if version(db) < 2:
        expected = {key: sql for key, sql in expected.items() if key[1] not in _ADDED_IN_2}
    if version(db) < 3:
        expected = expected | {("table", "sae"): _bare("sae", _SAE_BEFORE_3)}
    if version(db) < 4:
        expected = {key: sql for key, sql in expected.items() if key[1] not in _ADDED_IN_4}
    found: Objects = {}
    tables = {name for kind, name in expected if kind == "table"}
    for kind, name, table, sql in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
        if not all(isinstance(text, str) for text in (kind, name, table)):
            raise damaged(path, "its schema does not parse")
        if kind == "trigger":
            raise _foreign(path, f"a trigger, {name!r}")
        ours = name in tables or table in tables
        if not ours or name in _STATISTICS or (kind == "index" and sql is None):  # SQLite makes an index for each UNIQUE
            continue
        found[kind, name] = _bare(name, sql)
    for key, sql in expected.items():
        if found.pop(key, None) != sql:
            raise _foreign(path, f"a missing or changed {key[0]}, {key[1]!r}")
    if found:
        kind, name = next(iter(found))
        raise _foreign(path, f"an unknown {kind} on its tables, {name!r}")


def _foreign(path: Path, what: str) -> DatabaseError:
    hint = "Another program changed the file, or someone else made it. Use a copy that saekit wrote; do not trust this one."
    return DatabaseError(f"{path} has {what}.", hint)


@cache
def _script() -> str:
    return resources.files("feature_db.store").joinpath("schema.sql").read_text()


@cache
def _expected() -> Objects:
    """Tables and indices that :func:`create` makes, those behind full-text search included."""
    memory = sqlite3.connect(":memory:")
    create(memory)
    rows = memory.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    memory.close()
    return {(kind, name): _bare(name, sql) for kind, name, sql in rows}


def _bare(name: str, sql: str | None) -> str:
    """SQL without comments and extra white space; nothing for the tables behind full-text search, which SQLite versions vary."""
    if name.startswith(("term_fts_", "feature_fts_")):
        return ""
    text = " ".join(re.sub(r"--[^\n]*", " ", sql or "").split())
    return text.replace(f'CREATE TABLE "{name}"', f"CREATE TABLE {name}", 1)  # SQLite quotes the name of a table that was renamed
