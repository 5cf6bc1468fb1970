"""Feature databases as earlier versions wrote them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from feature_db.store import connections, schema
from tests.kit.contents import token_stats


def as_version_4(path: Path) -> None:
    """All relations of features to tokens and words in rows of their own."""
    connection = sqlite3.connect(path, isolation_level=None)
    rows = token_stats(connection)
    connection.executescript("BEGIN; DELETE FROM token_stat; DROP TABLE token_list; PRAGMA user_version = 4;")
    connection.executemany("INSERT INTO token_stat VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.execute("COMMIT")
    connection.close()
    assert connections.seal(path)


def as_version_3(path: Path) -> None:
    """Without what version 4 added."""
    as_version_4(path)
    indices = "".join(f"DROP INDEX {name}; " for name in schema._ADDED_INDICES[4])
    tables = indices + "".join(f"DROP TABLE {name}; " for name in reversed(schema._ADDED_TABLES[4]))
    columns = "".join(
        f"ALTER TABLE {table} DROP COLUMN {column.split()[0]}; "
        for table, added in schema._ADDED_COLUMNS[4].items()
        for column in added
    )
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        f"PRAGMA foreign_keys = OFF; BEGIN; {tables} {columns} DELETE FROM role WHERE name = 'causes'; "
        "PRAGMA user_version = 3; COMMIT;"
    )
    connection.close()
    assert connections.seal(path)


def as_version_2(path: Path) -> None:
    """One dictionary of each site, and no names."""
    as_version_3(path)
    old = schema._SAE_BEFORE_3.replace("TABLE sae", "TABLE sae_2")
    columns = "id, site, site_out, corpus, key, fingerprint, model, architecture, n_features, n_live, d_out, vectors"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        f"PRAGMA foreign_keys = OFF; BEGIN; {old}; INSERT INTO sae_2 SELECT {columns} FROM sae; DROP TABLE sae; "
        "ALTER TABLE sae_2 RENAME TO sae; PRAGMA user_version = 2; COMMIT;"
    )
    connection.close()
    assert connections.seal(path)


def as_version_1(path: Path) -> None:
    """No checksums, and nothing set aside either."""
    as_version_2(path)
    with sqlite3.connect(path) as connection:
        for table in ("file", "set_aside_label", "set_aside_list"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE sae SET key = 'of version 1'")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    path.with_name(path.name + ".sha256").unlink()
