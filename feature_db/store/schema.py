"""The tables of a feature database: their SQL, their version, and the check that a file holds these tables and no triggers."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path

from feature_db.errors import damaged
from saekit.errors import DatabaseError

VERSION = 5
"""Up to version 2, a site had one dictionary, and `sae` no column `name`. :data:`_ADDED_TABLES` and :data:`_ADDED_COLUMNS` say
what else earlier versions did not have. They are read as they are (:func:`fill_in`), and upgraded by the next write."""
APPLICATION = 0x5AE817DB
FEATURES_PER_SAE = 1 << 24
_ROLE_NAMES = ("fires_word", "fires_token", "peaks", "before", "context", "promotes", "suppresses", "causes")
ROLES = {name: i for i, name in enumerate(_ROLE_NAMES)}
"""Ids of the `role` table."""
_NOT_OURS = "Give the features.sqlite of a workspace."
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_ADDED_TABLES: dict[int, tuple[str, ...]] = {
    2: ("file", "set_aside_label", "set_aside_list"),
    4: (
        "class_stat",
        "partner",
        "measurement",
        "corpus_label",
        "corpus_label_stat",
        "label_failure",
        "note",
        "set_aside_note",
        "set_aside_failure",
    ),
    5: ("token_list",),
}
"""Tables that a version added to the one before it. Their indices come with them."""
_ADDED_INDICES = {4: ("label_human",)}
"""Indices that a version added on tables of earlier ones. Files without them hold the same, and are read more slowly."""
_ADDED_COLUMNS: dict[int, dict[str, tuple[str, ...]]] = {
    4: {
        "feature": ("input_score REAL", "output_score REAL", "effect REAL", "logit_histogram BLOB", "label_score REAL"),
        "label": ("created TEXT", "rule TEXT", "corpus TEXT"),
        "label_score": ("judge TEXT", "prompt TEXT"),
    },
}
"""Columns that a version added, in the order of schema.sql: after the other columns of their table, and NULL in earlier rows."""
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
    db.executescript(
        f"BEGIN; {_script()} {_roles()}; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    )


def _roles() -> str:
    """The statement that writes the rows of `role`."""
    roles = ", ".join(f"({number}, '{name}')" for name, number in ROLES.items())
    return f"INSERT OR IGNORE INTO role (id, name) VALUES {roles}"


def upgrade(db: sqlite3.Connection) -> None:
    """Bring the tables of a database of an earlier version to this one, inside the caller's transaction.

    Foreign keys must be off (:func:`upgrading`): SQLite changes a table by making it again, and would delete the rows that
    refer to it.
    """
    found = version(db)
    if found == VERSION:
        return
    for sql in _added_tables(found).values():
        db.execute(sql)
    if found < 3:
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(sae)")]
        db.execute(_expected()["table", "sae"].replace("CREATE TABLE sae", "CREATE TABLE sae_3", 1))
        db.execute(f"INSERT INTO sae_3 ({', '.join(columns)}, name) SELECT {', '.join(columns)}, '' FROM sae")
        db.execute("DROP TABLE sae")
        db.execute("ALTER TABLE sae_3 RENAME TO sae")
    for table, added in _added_columns(found).items():
        for column in added:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    db.execute(_roles())
    db.execute(f"PRAGMA user_version = {VERSION}")


def fill_in(db: sqlite3.Connection) -> None:
    """Let a reading connection to a database of an earlier version see the tables and columns of this one, without rows or NULL.

    They are temporary tables and views of this connection, which SQLite prefers to those of the file where a statement does not
    say `main.`. The file is not changed.
    """
    found = version(db)
    for (kind, _), sql in _added_tables(found).items():
        if kind == "table":
            db.execute(sql.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))
    columns = {table: [f"NULL AS {column.split()[0]}" for column in added] for table, added in _added_columns(found).items()}
    if found < 3:
        columns["sae"] = [*columns.get("sae", ()), "'' AS name"]
    for table, added in columns.items():
        db.execute(f"CREATE TEMP VIEW {table} AS SELECT *, {', '.join(added)} FROM main.{table}")


def filled_in() -> frozenset[str]:
    """Names of the temporary tables and views that :func:`fill_in` may make."""
    columns = (table for tables in _ADDED_COLUMNS.values() for table in tables)
    return frozenset(("sae", *columns, *(name for tables in _ADDED_TABLES.values() for name in tables)))


def _added_tables(found: int) -> Objects:
    """SQL of the tables, and of their indices, that version `found` does not have."""
    names = {name for number, tables in _ADDED_TABLES.items() if number > found for name in tables}
    names |= {name for number, indices in _ADDED_INDICES.items() if number > found for name in indices}
    return {
        key: sql
        for key, sql in _expected().items()
        if key[1] in names or (key[0] == "index" and re.search(r" ON (\w+)", sql)[1] in names)  # type: ignore[index]
    }


def _added_columns(found: int) -> dict[str, list[str]]:
    """Definitions of the columns that version `found` does not have, by table."""
    added: dict[str, list[str]] = {}
    for number, tables in _ADDED_COLUMNS.items():
        if number > found:
            for table, columns in tables.items():
                if ("table", table) not in _added_tables(found):
                    added.setdefault(table, []).extend(columns)
    return added


@contextmanager
def upgrading(db: sqlite3.Connection) -> Iterator[None]:
    """Within the block, a transaction of its own in which :func:`upgrade` may run. Foreign keys are on afterwards."""
    db.execute("PRAGMA foreign_keys = OFF")  # impossible inside a transaction
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.execute("PRAGMA foreign_keys = ON")


def tables() -> list[str]:
    """The tables in the order in which they are made, those of full-text search left out."""
    return [name for kind, name in _expected() if kind == "table" and "_fts" not in name]


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
    expected = _expected_of(version(db))
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
    spared = {("index", name) for names in _ADDED_INDICES.values() for name in names} - found.keys()
    for key, sql in expected.items():
        if key not in spared and found.pop(key, None) != sql:
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


def _expected_of(found: int) -> Objects:
    """The same as version `found` made them."""
    missing = _added_tables(found)
    expected = {key: sql for key, sql in _expected().items() if key not in missing}
    for table, columns in _added_columns(found).items():
        for column in columns:
            expected["table", table] = expected["table", table].replace(f", {column}", "", 1)
    if found < 3:
        expected["table", "sae"] = _bare("sae", _SAE_BEFORE_3)
    return expected


def _bare(name: str, sql: str | None) -> str:
    """SQL without comments and extra white space; nothing for the tables behind full-text search, which SQLite versions vary."""
    if name.startswith(("term_fts_", "feature_fts_")):
        return ""
    text = re.sub(r" (?=[,)])", "", " ".join(re.sub(r"--[^\n]*", " ", sql or "").split()))
    return text.replace(f'CREATE TABLE "{name}"', f"CREATE TABLE {name}", 1)  # SQLite quotes the name of a table that was renamed
