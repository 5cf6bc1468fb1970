"""Writes that indexing and editing share."""

from __future__ import annotations

import sqlite3

from feature_db.labels.evidence import Label
from feature_db.store import schema


def next_id(db: sqlite3.Connection, table: str) -> int:
    """The first free id."""
    return db.execute(f"SELECT COALESCE(MAX(id), 0) + 1 FROM {table}").fetchone()[0]


def add_labels(db: sqlite3.Connection, feature: int, found: list[Label], first_id: int) -> int:
    """Insert labels and their scores; returns the id after the last."""
    db.executemany(
        "INSERT INTO label (id, feature, method, text, keywords, rank, model, prompt) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(first_id + i, feature, x.method, x.text, x.keywords, x.rank, x.model, x.prompt) for i, x in enumerate(found)],
    )
    scores = [(first_id + i, metric, value) for i, x in enumerate(found) for metric, value in x.scores.items()]
    db.executemany("INSERT INTO label_score(label, metric, value) VALUES (?, ?, ?)", scores)
    return first_id + len(found)


def delete_dictionary(db: sqlite3.Connection, sae: int) -> None:
    """Delete a dictionary and all rows of its features. Set aside first what people made (:mod:`feature_db.store.set_aside`)."""
    span = (schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1)
    for table in ("token_stat", "class_stat", "example", "label", "partner", "corpus_label_stat"):  # scores go with their labels
        db.execute(f"DELETE FROM {table} WHERE feature BETWEEN ? AND ?", span)
    db.execute("DELETE FROM feature_fts WHERE rowid BETWEEN ? AND ?", span)
    db.execute("DELETE FROM feature WHERE id BETWEEN ? AND ?", span)
    db.execute("DELETE FROM sae WHERE id = ?", (sae,))


def delete_orphans(db: sqlite3.Connection) -> None:
    """Delete texts that no dictionary was counted on any more, with their tokens and words."""
    orphans = "corpus NOT IN (SELECT corpus FROM sae)"
    db.execute(f"INSERT INTO term_fts(term_fts, rowid, text) SELECT 'delete', id, text FROM term WHERE {orphans}")
    db.execute(f"DELETE FROM term WHERE {orphans}")
    db.execute("DELETE FROM corpus WHERE id NOT IN (SELECT corpus FROM sae)")


def refresh_fts(db: sqlite3.Connection, feature: int) -> None:
    """Update full-text search to the present labels of a feature."""
    words = [row[0] for row in db.execute("SELECT keywords FROM label WHERE feature = ? ORDER BY rank DESC, id", (feature,))]
    db.execute("UPDATE feature_fts SET label = ? WHERE rowid = ?", (" ".join(words).strip(), feature))
