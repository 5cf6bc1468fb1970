"""All rows of a database, for comparison."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Sorted rows of each table, without the internal tables of SQLite but with those of full-text search."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    ]
    kept = [t for t in tables if not any(t.startswith(f"{fts}_") for fts in ("term_fts", "feature_fts"))]
    found = {
        t: sorted(connection.execute(f"SELECT rowid, * FROM {t}" if t.endswith("_fts") else f"SELECT * FROM {t}"), key=repr)
        for t in kept
    }
    connection.close()
    return found
