"""All rows of a database, for comparison."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from feature_db.store import token_lists


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Sorted rows of each table, without the internal tables of SQLite but with those of full-text search.

    Relations to tokens and words are rows of `token_stat`, also those that are stored packed.
    """
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    ]
    kept = [t for t in tables if not any(t.startswith(f"{fts}_") for fts in ("term_fts", "feature_fts"))]
    found = {
        t: sorted(connection.execute(f"SELECT rowid, * FROM {t}" if t.endswith("_fts") else f"SELECT * FROM {t}"), key=repr)
        for t in kept
        if t != "token_list"
    }
    if "token_stat" in found:
        found["token_stat"] = sorted(token_stats(connection), key=repr)
    connection.close()
    return found


def token_stats(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """The rows of `token_stat`, with those that `token_list` holds packed."""
    rows = connection.execute("SELECT * FROM main.token_stat").fetchall()
    if connection.execute("SELECT 1 FROM main.sqlite_master WHERE name = 'token_list'").fetchone() is None:
        return rows
    for feature, role, entries in connection.execute("SELECT feature, role, entries FROM main.token_list"):
        for rank, (term, value, score, rate, peak, hits) in enumerate(json.loads(token_lists.to_json(entries))):
            rows.append((feature, role, rank, term, value, rate, peak, hits, score))
    return rows


def unpack_token_stats(connection: sqlite3.Connection) -> None:
    """Let `token_stat` mean all of these rows in the queries of a connection."""
    rows = token_stats(connection)
    connection.execute("CREATE TEMP TABLE token_stat AS SELECT * FROM main.token_stat LIMIT 0")
    connection.executemany("INSERT INTO temp.token_stat VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
