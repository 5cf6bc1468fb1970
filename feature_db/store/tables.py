"""Writes that indexing and editing share."""

from __future__ import annotations

import sqlite3

from feature_db.labels.evidence import Label


def next_id(db: sqlite3.Connection, table: str) -> int:
    """The first free id."""
    return db.execute(f"SELECT COALESCE(MAX(id), 0) + 1 FROM {table}").fetchone()[0]


def add_labels(db: sqlite3.Connection, feature: int, found: list[Label], first_id: int) -> int:
    """Insert labels and their scores; returns the id after the last."""
    db.executemany(
        "INSERT INTO label VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(first_id + i, feature, x.method, x.text, x.keywords, x.rank, x.model, x.prompt) for i, x in enumerate(found)],
    )
    scores = [(first_id + i, metric, value) for i, x in enumerate(found) for metric, value in x.scores.items()]
    db.executemany("INSERT INTO label_score(label, metric, value) VALUES (?, ?, ?)", scores)
    return first_id + len(found)


def refresh_fts(db: sqlite3.Connection, feature: int) -> None:
    """Update full-text search to the present labels of a feature."""
    words = [row[0] for row in db.execute("SELECT keywords FROM label WHERE feature = ? ORDER BY rank DESC, id", (feature,))]
    db.execute("UPDATE feature_fts SET label = ? WHERE rowid = ?", (" ".join(words).strip(), feature))
