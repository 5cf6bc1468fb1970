"""What people write about features: labels, notes and lists. Functions on a connection, inside the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from feature_db.labels.evidence import Label
from feature_db.labels.rules import HUMAN, HUMAN_RANK
from feature_db.store import schema, stored
from feature_db.store.stored import INT, TEXT
from feature_db.store.tables import add_labels, corpus_key, next_id, rank_label, refresh_label

if TYPE_CHECKING:
    from feature_db.scorers.given import Judge
    from feature_db.scorers.registry import Result


def now() -> str:
    """The present time in UTC, to the second: 2026-11-30T21:15:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# Labels


def add(db: sqlite3.Connection, feature: int, labels: Sequence[Label], corpus: str | None = None) -> None:
    """Add labels of people or models to a feature, with the present time.

    Args:
        corpus: as :func:`feature_db.store.tables.add_labels_of` takes it.
    """
    add_labels(db, feature, labels, next_id(db, "label"), created=now(), corpus=corpus)
    refresh_label(db, feature)


def add_new(db: sqlite3.Connection, feature: int, labels: Sequence[Label]) -> int:
    """Add labels except those that the feature has, with the same method, model and text; returns how many."""
    held = set(db.execute("SELECT method, model, text FROM label WHERE feature = ?", (feature,)))
    new: dict[tuple[str, str | None, str], Label] = {}
    for label in labels:
        origin = label.method, label.model, label.text
        if origin not in held:
            new.setdefault(origin, label)
    if new:
        add(db, feature, list(new.values()))
    return len(new)


class Changed(NamedTuple):
    """How many labels by hand of a feature were added and removed."""

    added: int
    removed: int


def add_label(db: sqlite3.Connection, feature: int, text: str) -> Changed:
    """Add a label by hand, unless the feature has it already."""
    same = "SELECT 1 FROM label WHERE feature = ? AND method = ? AND text = ?"
    if db.execute(same, (feature, HUMAN, text)).fetchone() is not None:
        return Changed(0, 0)
    add(db, feature, [Label(HUMAN, text, HUMAN_RANK, text)])
    return Changed(1, 0)


def set_label(db: sqlite3.Connection, feature: int, text: str) -> Changed:
    """Replace all labels by hand of a feature by one; an empty text only removes them."""
    kept = db.execute("SELECT text FROM label WHERE feature = ? AND method = ?", (feature, HUMAN)).fetchall()
    if kept == [(text,)]:  # with its date and its scores
        return Changed(0, 0)
    removed = remove_label(db, feature, None)
    return Changed(add_label(db, feature, text).added if text else 0, removed)


def remove_label(db: sqlite3.Connection, feature: int, text: str | None) -> int:
    """Remove the label by hand with this text, or all labels by hand; returns their number."""
    chosen, parameters = ("", ()) if text is None else (" AND text = ?", (text,))
    removed = db.execute(f"DELETE FROM label WHERE feature = ? AND method = ?{chosen}", (feature, HUMAN, *parameters)).rowcount
    refresh_label(db, feature)
    return removed


def replace_labels(db: sqlite3.Connection, feature: int, labels: Sequence[Label]) -> None:
    """Add labels made from the index, in place of those that the same methods, models and prompts gave the feature before."""
    for origin in {(label.method, label.model, label.prompt) for label in labels}:
        for table in ("label", "label_failure"):
            same = "feature = ? AND method = ? AND model IS ? AND prompt IS ?"
            db.execute(f"DELETE FROM {table} WHERE {same}", (feature, *origin))
    add(db, feature, labels, corpus_key(db, feature // schema.FEATURES_PER_SAE))


# Notes


def add_note(db: sqlite3.Connection, feature: int, text: str) -> None:
    """Add a note to a feature."""
    db.execute("INSERT INTO note (feature, text, created) VALUES (?, ?, ?)", (feature, text, now()))
    refresh_label(db, feature)


def remove_notes(db: sqlite3.Connection, feature: int, number: int | None) -> int:
    """Remove a note of a feature by its place, counted from 1, or all notes; returns the number of removed notes."""
    ids = [row[0] for row in db.execute("SELECT id FROM note WHERE feature = ? ORDER BY id", (feature,))]
    chosen = ids if number is None else ids[number - 1 : number] if number > 0 else []
    db.executemany("DELETE FROM note WHERE id = ?", [(i,) for i in chosen])
    refresh_label(db, feature)
    return len(chosen)


# Lists


def set_list(db: sqlite3.Connection, name: str, features: Iterable[int]) -> None:
    """Replace the features of a list; an empty list is removed. Features that stay keep their notes."""
    found = db.execute("SELECT feature, note FROM list WHERE name = ?", (name,))
    notes: dict[int, str] = {}
    notes.update(stored.rows("the lists", found, INT, TEXT))
    db.execute("DELETE FROM list WHERE name = ?", (name,))
    rows = [(name, position, feature, notes.get(feature, "")) for position, feature in enumerate(dict.fromkeys(features))]
    db.executemany("INSERT INTO list (name, position, feature, note) VALUES (?, ?, ?, ?)", rows)


def add_to_list(db: sqlite3.Connection, name: str, features: Iterable[int], note: str | None) -> int:
    """Add features to the end of a list; returns the number of new ones. A note is set for all of them."""
    added = 0
    for feature in dict.fromkeys(features):
        sql = "SELECT 1 FROM list WHERE name = ? AND feature = ?"
        if db.execute(sql, (name, feature)).fetchone() is None:
            sql = "SELECT COALESCE(MAX(position), -1) + 1 FROM list WHERE name = ?"
            position = db.execute(sql, (name,)).fetchone()[0]
            db.execute("INSERT INTO list (name, position, feature) VALUES (?, ?, ?)", (name, position, feature))
            added += 1
        if note is not None:
            db.execute("UPDATE list SET note = ? WHERE name = ? AND feature = ?", (note, name, feature))
    return added


def remove_from_list(db: sqlite3.Connection, name: str, features: Iterable[int]) -> int:
    """Remove features from a list; returns how many it had. The others keep their order."""
    rows = [(name, feature) for feature in dict.fromkeys(features)]
    return sum(db.execute("DELETE FROM list WHERE name = ? AND feature = ?", row).rowcount for row in rows)


# Scores


def add_scores(db: sqlite3.Connection, sae: int, found: Sequence[Result], judge: Judge | None = None) -> None:
    """Write scores of labels, and rank the labels that were measured anew. Labels that have gone since are left out.

    Where a judge was asked, a label without a score is recorded as a failure, until the judge gives the feature one.

    Args:
        sae: id of the dictionary.
        found: the labels, each with its scores by metric.
        judge: the language model that was asked.
    """
    features = dict[int, None]()
    name, prompt = (judge.model, judge.prompt) if judge else (None, None)
    for label, scores, failed in ((each.label, each.scores, each.failed) for each in found):
        feature = schema.feature_id(sae, label.feature)
        there = "SELECT 1 FROM label WHERE id = ? AND feature = ? AND text = ?"
        if db.execute(there, (label.id, feature, label.text)).fetchone() is None:
            continue
        if judge:
            same = "feature = ? AND method = ? AND model = ? AND prompt = ?"
            db.execute(f"DELETE FROM label_failure WHERE {same}", (feature, judge.scorer, name, prompt))
        if judge and failed:
            values = (feature, judge.scorer, name, prompt, failed, now())
            db.execute("INSERT INTO label_failure VALUES (?, ?, ?, ?, ?, ?)", values)
        if failed:
            continue
        if judge:  # no number of an earlier judge stays among those of this one
            of_scorer = "label = ? AND judge IS NOT NULL AND (metric = ? OR substr(metric, 1, ?) = ?)"
            prefix = f"{judge.scorer}_"
            db.execute(f"DELETE FROM label_score WHERE {of_scorer}", (label.id, judge.scorer, len(prefix), prefix))
        db.executemany(
            "INSERT OR REPLACE INTO label_score (label, metric, value, n, low, high, judge, prompt) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(label.id, metric, *score, name, prompt) for metric, score in scores.items()],
        )
        features[feature] = None
        rank_label(db, label.id)
    for feature in features:
        refresh_label(db, feature)
