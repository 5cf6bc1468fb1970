"""Labels, notes, lists, and failures of language models, which outlive a rebuild of the features that they belong to.

Before the rows of a dictionary are replaced, its labels by people and models, its notes, its list entries, and the features that
language models failed to label are set aside under its fingerprint. Whenever a dictionary is indexed, what waits for its
fingerprint returns. So nothing is lost when another dictionary takes its place, and all of it comes back with the dictionary.
Only scores on held-out documents do not come back to an index of another text or split, which holds out other documents.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from feature_db.labels.rules import HUMAN, LABEL_METHODS, UNSCORED_RANK
from feature_db.scorers.registry import deciding
from feature_db.store import schema, stored
from feature_db.store.stored import INT, INT_OR_NONE, REAL, REAL_OR_NONE, TEXT, TEXT_OR_NONE
from feature_db.store.tables import corpus_key, next_id, rank_label, refresh_label

_LABEL = {
    "method": TEXT,
    "text": TEXT,
    "keywords": TEXT,
    "rank": REAL,
    "model": TEXT_OR_NONE,
    "prompt": TEXT_OR_NONE,
    "created": TEXT_OR_NONE,
    "rule": TEXT_OR_NONE,
    "corpus": TEXT_OR_NONE,
}
_ORIGIN = ("method", "model", "prompt")
_BY_PEOPLE = ("set_aside_label", "set_aside_note", "set_aside_list")
TABLES = (*_BY_PEOPLE, "set_aside_failure")
_MEASURED = "measured"
"""Key of the facts of a label: the key of the documents that the index counted where the label was scored."""
_SCORE = {
    "metric": TEXT,
    "value": REAL,
    "n": INT_OR_NONE,
    "low": REAL_OR_NONE,
    "high": REAL_OR_NONE,
    "judge": TEXT_OR_NONE,
    "prompt": TEXT_OR_NONE,
}


class Joined(NamedTuple):
    """An entry of a list that came back to an entry of the same feature with another note: it has both notes now."""

    feature: int
    """Id."""
    name: str
    """Of the list."""
    notes: tuple[str, str]


def put(db: sqlite3.Connection, sae: int, fingerprint: str) -> None:
    """Set aside what belongs to the features of dictionary `sae`."""
    span = _span(sae)
    for number, facts in _labels(db, sae):
        values = (fingerprint, number, json.dumps(facts))
        db.execute("INSERT INTO set_aside_label(fingerprint, number, label) VALUES (?, ?, ?)", values)
    db.execute(
        "INSERT INTO set_aside_list(fingerprint, number, name, position, note) "
        "SELECT ?, feature - ?, name, position, note FROM list WHERE feature BETWEEN ? AND ? ORDER BY name, position",
        (fingerprint, span[0], *span),
    )
    db.execute("DELETE FROM list WHERE feature BETWEEN ? AND ?", span)
    db.execute(
        "INSERT INTO set_aside_note(fingerprint, number, text, created) "
        "SELECT ?, feature - ?, text, created FROM note WHERE feature BETWEEN ? AND ? ORDER BY id",
        (fingerprint, span[0], *span),
    )
    db.execute("DELETE FROM note WHERE feature BETWEEN ? AND ?", span)
    db.execute(
        "INSERT INTO set_aside_failure(fingerprint, number, method, model, prompt, reason, created) "
        "SELECT ?, feature - ?, method, model, prompt, reason, created FROM label_failure WHERE feature BETWEEN ? AND ?",
        (fingerprint, span[0], *span),
    )
    db.execute("DELETE FROM label_failure WHERE feature BETWEEN ? AND ?", span)


def bring_back(db: sqlite3.Connection, sae: int, fingerprint: str) -> list[Joined]:
    """Give the features of dictionary `sae` what waits for its fingerprint.

    A label that a feature has already gets the scores that it lacks. An entry that a list has already gets the other note too.
    """
    found = db.execute("SELECT number, label FROM set_aside_label WHERE fingerprint = ? ORDER BY id", (fingerprint,)).fetchall()
    labelled = set()
    for number, text in stored.rows("the labels set aside", found, INT, TEXT):
        feature = schema.feature_id(sae, number)
        labelled.add(feature)
        facts = stored.parsed("the labels set aside", text)
        label = _same(db, feature, facts, ("method", "model", "text"))
        if label is None:
            _insert(db, feature, facts)
        elif (
            _same(db, feature, facts, ("method", "model", "text", "corpus")) == label  # made from the same documents
            and _add_scores(db, label, _scores(db, feature, facts)[0])
        ):
            rank_label(db, label)
    sql = "SELECT number, text, created FROM set_aside_note WHERE fingerprint = ? ORDER BY id"
    for number, text, created in stored.rows("the notes set aside", db.execute(sql, (fingerprint,)), INT, TEXT, TEXT):
        feature = schema.feature_id(sae, number)
        labelled.add(feature)
        _add_note(db, feature, text, created)
    for feature in sorted(labelled):
        refresh_label(db, feature)
    joined = _bring_lists(db, sae, fingerprint)
    _bring_failures_back(db, sae, fingerprint)
    for table in TABLES:
        db.execute(f"DELETE FROM {table} WHERE fingerprint = ?", (fingerprint,))
    return joined


def _bring_lists(db: sqlite3.Connection, sae: int, fingerprint: str) -> list[Joined]:
    joined = []
    entries = db.execute(
        "SELECT number, name, position, note FROM set_aside_list WHERE fingerprint = ? ORDER BY id", (fingerprint,)
    ).fetchall()
    for number, name, position, note in stored.rows("the lists set aside", entries, INT, TEXT, INT, TEXT):
        feature = schema.feature_id(sae, number)
        there = db.execute("SELECT note FROM list WHERE name = ? AND feature = ?", (name, feature)).fetchone()
        if there is not None:
            (mine,) = stored.row("the lists", there, TEXT)
            if f"; {note}; " not in f"; {mine}; " and note:
                both = f"{mine}; {note}" if mine else note
                db.execute("UPDATE list SET note = ? WHERE name = ? AND feature = ?", (both, name, feature))
                joined += [Joined(feature, name, (mine, note))] if mine else []
            continue
        if db.execute("SELECT 1 FROM list WHERE name = ? AND position = ?", (name, position)).fetchone():
            position = db.execute("SELECT MAX(position) + 1 FROM list WHERE name = ?", (name,)).fetchone()[0]
        db.execute("INSERT INTO list VALUES (?, ?, ?, ?)", (name, position, feature, note))
    return joined


def _bring_failures_back(db: sqlite3.Connection, sae: int, fingerprint: str) -> None:
    """Failures, except those of features that have a label of the same origin."""
    sql = "SELECT number, method, model, prompt, reason, created FROM set_aside_failure WHERE fingerprint = ? ORDER BY id"
    found = db.execute(sql, (fingerprint,)).fetchall()
    for number, *facts in stored.rows("the failures set aside", found, INT, TEXT, TEXT, TEXT, TEXT, TEXT):
        feature = schema.feature_id(sae, number)
        if _same(db, feature, dict(zip(_ORIGIN, facts)), _ORIGIN) is None:
            db.execute("INSERT OR REPLACE INTO label_failure VALUES (?, ?, ?, ?, ?, ?)", (feature, *facts))


def bring_all_back(db: sqlite3.Connection) -> list[Joined]:
    """Give every indexed dictionary what waits for it: one may have lost an address and still have another."""
    joined = []
    waits = " UNION ".join(f"SELECT fingerprint FROM {table}" for table in TABLES)
    for sae, fingerprint in db.execute(f"SELECT id, fingerprint FROM sae WHERE fingerprint IN ({waits}) ORDER BY id").fetchall():
        joined += bring_back(db, sae, fingerprint)
    return joined


def share(db: sqlite3.Connection, sae: int, fingerprint: str) -> None:
    """Give the features of dictionary `sae` the labels, notes and list entries of other dictionaries with the same weights.

    `saekit choose` copies a dictionary, so that the same weights have two addresses. A feature that has a label of the same
    origin keeps that one.
    """
    twins = db.execute("SELECT id FROM sae WHERE fingerprint = ? AND id != ? ORDER BY id", (fingerprint, sae)).fetchall()
    for (twin,) in twins:
        found = [(schema.feature_id(sae, number), facts) for number, facts in _labels(db, twin)]
        missing = [(feature, facts) for feature, facts in found if _same(db, feature, facts, ("method", "model")) is None]
        for feature, facts in missing:
            _insert(db, feature, facts)
        changed = {feature for feature, _ in missing} | _share_notes(db, twin, sae)
        for feature in sorted(changed):
            refresh_label(db, feature)
        _share_lists(db, twin, sae)


def _share_notes(db: sqlite3.Connection, twin: int, sae: int) -> set[int]:
    """Copy the notes of the features of a dictionary to those of another one; returns the features with new notes."""
    found = db.execute("SELECT feature, text, created FROM note WHERE feature BETWEEN ? AND ? ORDER BY id", _span(twin))
    between = schema.feature_id(sae, 0) - schema.feature_id(twin, 0)
    notes = stored.rows("the notes", found.fetchall(), INT, TEXT, TEXT)
    return {feature + between for feature, text, created in notes if _add_note(db, feature + between, text, created)}


def _share_lists(db: sqlite3.Connection, twin: int, sae: int) -> None:
    """Add the features of a dictionary to the ends of the lists that hold those of another one."""
    sql = "SELECT name, feature, note FROM list WHERE feature BETWEEN ? AND ? ORDER BY name, position"
    between = schema.feature_id(sae, 0) - schema.feature_id(twin, 0)
    for name, feature, note in stored.rows("the lists", db.execute(sql, _span(twin)).fetchall(), TEXT, INT, TEXT):
        db.execute(
            "INSERT INTO list (name, position, feature, note) SELECT name, MAX(position) + 1, ?, ? FROM list WHERE name = ? "
            "HAVING SUM(feature = ?) = 0",
            (feature + between, note, name, feature + between),
        )


def _span(sae: int) -> tuple[int, int]:
    """The first and the last id that a feature of dictionary `sae` can have."""
    return schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1


def waiting(db: sqlite3.Connection) -> dict[str, int]:
    """How many labels, notes and list entries wait for their dictionary, by its fingerprint."""
    union = " UNION ALL ".join(f"SELECT fingerprint FROM {table}" for table in _BY_PEOPLE)
    return dict(db.execute(f"SELECT fingerprint, COUNT(*) FROM ({union}) GROUP BY fingerprint").fetchall())


def by_people(db: sqlite3.Connection) -> tuple[int, int]:
    """How many labels and notes by people and models, and how many list entries there are, those that wait included."""
    rules = tuple(LABEL_METHODS)
    of_people = f"SELECT COUNT(*) FROM label WHERE method NOT IN ({', '.join('?' * len(rules))})"
    labels = db.execute(of_people, rules).fetchone()[0]

    def rows(*tables: str) -> int:
        return sum(db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables)

    return labels + rows("note", "set_aside_label", "set_aside_note"), rows("list", "set_aside_list")


def _labels(db: sqlite3.Connection, sae: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the feature, and content, of each label of dictionary `sae` that no rule made."""
    first, last = _span(sae)
    rules, key = tuple(LABEL_METHODS), corpus_key(db, sae)
    found = db.execute(
        f"SELECT id, feature, {', '.join(_LABEL)} FROM label "
        f"WHERE feature BETWEEN ? AND ? AND method NOT IN ({', '.join('?' * len(rules))}) ORDER BY id",
        (first, last, *rules),
    ).fetchall()
    for label, feature, *columns in stored.rows("the labels", found, INT, INT, *_LABEL.values()):
        scores = db.execute(f"SELECT {', '.join(_SCORE)} FROM label_score WHERE label = ? ORDER BY metric", (label,))
        facts = dict(zip(_LABEL, columns)) | {"scores": stored.rows("the scores of labels", scores, *_SCORE.values())}
        yield feature - first, facts | {_MEASURED: key}


def _same(db: sqlite3.Connection, feature: int, facts: dict[str, Any], columns: tuple[str, ...]) -> int | None:
    """Id of the label of a feature that is equal in these columns; None if it has no such label."""
    same = " AND ".join(f"{name} IS ?" for name in columns)
    values = (feature, *(facts.get(name) for name in columns))
    found = db.execute(f"SELECT id FROM label WHERE feature = ? AND {same} ORDER BY id", values).fetchone()
    return None if found is None else found[0]


def _add_note(db: sqlite3.Connection, feature: int, text: str, created: str) -> bool:
    """Add a note that the feature does not have; returns whether it was added."""
    same = "SELECT 1 FROM note WHERE feature = ? AND text = ? AND created = ?"
    if db.execute(same, (feature, text, created)).fetchone() is not None:
        return False
    db.execute("INSERT INTO note (feature, text, created) VALUES (?, ?, ?)", (feature, text, created))
    return True


def _insert(db: sqlite3.Connection, feature: int, facts: dict[str, Any]) -> None:
    label = next_id(db, "label")
    scores, left_out = _scores(db, feature, facts)
    if facts.get("method") != HUMAN and any(metric in deciding() for metric in left_out):
        facts = facts | {"rank": UNSCORED_RANK}  # its rank was that of the score
    columns = tuple(facts.get(name) for name in _LABEL)
    stored.row("the labels set aside", columns, *_LABEL.values())
    marks = ", ".join("?" * (2 + len(columns)))
    db.execute(f"INSERT INTO label(id, feature, {', '.join(_LABEL)}) VALUES ({marks})", (label, feature, *columns))
    _add_scores(db, label, scores)


def _scores(db: sqlite3.Connection, feature: int, facts: dict[str, Any]) -> tuple[list[tuple[Any, ...]], list[str]]:
    """The scores of a label that hold for the present index, and the metrics of the others."""
    kept, left_out = [], []
    same_documents = facts.get(_MEASURED) == corpus_key(db, feature // schema.FEATURES_PER_SAE)
    for score in facts.get("scores", ()):
        columns = (*score, *[None] * (len(_SCORE) - len(score)))  # earlier versions did not write the last ones
        metric, value, n, *others = stored.row("the labels set aside", columns, *_SCORE.values())
        if same_documents or n is None:
            kept.append((metric, value, n, *others))
        else:
            left_out.append(metric)
    return kept, left_out


def _add_scores(db: sqlite3.Connection, label: int, scores: list[tuple[Any, ...]]) -> int:
    """Add the scores that a label lacks; returns their number."""
    sql = f"INSERT OR IGNORE INTO label_score(label, {', '.join(_SCORE)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    return sum(db.execute(sql, (label, *score)).rowcount for score in scores)
