"""Writes that indexing and editing share."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from feature_db.labels.evidence import Label
from feature_db.labels.ranking import main_score, measured_rank
from feature_db.labels.rules import HUMAN
from feature_db.scorers.registry import deciding
from feature_db.store import schema, stored
from feature_db.store.stored import TEXT


def next_id(db: sqlite3.Connection, table: str) -> int:
    """The first free id."""
    return db.execute(f"SELECT COALESCE(MAX(id), 0) + 1 FROM {table}").fetchone()[0]


def corpus_key(db: sqlite3.Connection, sae: int) -> str:
    """The key of the documents that the index of dictionary `sae` counted: it differs where the text or the split does."""
    found = db.execute("SELECT key FROM corpus WHERE id = (SELECT corpus FROM sae WHERE id = ?)", (sae,)).fetchone()
    return str(stored.row("the corpora", found, TEXT)[0])


def add_labels(
    db: sqlite3.Connection,
    feature: int,
    found: Sequence[Label],
    first_id: int,
    *,
    created: str | None = None,
    corpus: str | None = None,
) -> int:
    """Insert labels of a feature and their scores; returns the id after the last. See :func:`add_labels_of`."""
    return add_labels_of(db, [(feature, found)], first_id, created=created, corpus=corpus)


def add_labels_of(
    db: sqlite3.Connection,
    found: Sequence[tuple[int, Sequence[Label]]],
    first_id: int,
    *,
    created: str | None = None,
    corpus: str | None = None,
) -> int:
    """Insert labels and their scores; returns the id after the last.

    Args:
        found: ids of features, each with its labels.
        first_id: of the first label.
        created: the time; None for labels by rules, which are the same whenever they are made.
        corpus: key of the documents that a model made them from (:func:`corpus_key`); None: of a rule or a person, or unknown.
    """
    numbered = list(enumerate(((feature, x) for feature, labels in found for x in labels), first_id))
    db.executemany(
        "INSERT INTO label (id, feature, method, text, keywords, rank, model, prompt, created, rule, corpus) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (i, feature, x.method, x.text, x.keywords, x.rank, x.model, x.prompt, created, x.rule and x.rule.to_json(), corpus)
            for i, (feature, x) in numbered
        ],
    )
    scores = [(i, metric, value) for i, (_, x) in numbered for metric, value in x.scores.items()]
    db.executemany("INSERT INTO label_score(label, metric, value) VALUES (?, ?, ?)", scores)
    return first_id + len(numbered)


def delete_dictionary(db: sqlite3.Connection, sae: int) -> None:
    """Delete a dictionary and all rows of its features. Set aside first what people made (:mod:`feature_db.store.set_aside`)."""
    span = (schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1)
    # Scores go with their labels.
    for table in ("token_stat", "token_list", "class_stat", "example", "label", "note", "partner", "corpus_label_stat"):
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


def rank_label(db: sqlite3.Connection, label: int) -> None:
    """Rank a label by its scores on held-out documents, unless a person wrote it or it has no such scores."""
    found = db.execute("SELECT metric, value FROM label_score WHERE label = ? AND n IS NOT NULL", (label,))
    rank = measured_rank(dict(found.fetchall()), deciding())
    if rank is not None:
        db.execute("UPDATE label SET rank = ? WHERE id = ? AND method != ?", (rank, label, HUMAN))


def refresh_label(db: sqlite3.Connection, feature: int) -> None:
    """Update the text of a feature's labels and notes for full-text search, and the score of the label that is shown."""
    labels = db.execute("SELECT id, keywords FROM label WHERE feature = ? ORDER BY rank DESC, id", (feature,)).fetchall()
    notes = db.execute("SELECT text FROM note WHERE feature = ? ORDER BY id", (feature,)).fetchall()
    words = [keywords for _, keywords in labels] + [text for (text,) in notes]
    db.execute("UPDATE feature_fts SET label = ? WHERE rowid = ?", (" ".join(words).strip(), feature))
    shown = labels[0][0] if labels else None
    found = db.execute("SELECT metric, value FROM label_score WHERE label = ? AND n IS NOT NULL", (shown,))
    db.execute("UPDATE feature SET label_score = ? WHERE id = ?", (main_score(dict(found), deciding()), feature))
