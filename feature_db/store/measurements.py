"""Writes and reads measurements of a dictionary that is indexed (:mod:`feature_db.effects`)."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from typing import Any

from feature_db.effects.measured import CorpusLabels, Measured, Partners, TokenRows
from feature_db.store import schema, stored
from feature_db.store.relabel import relabel
from feature_db.store.stored import INT, TEXT
from feature_db.store.tables import next_id

COLUMNS = ("input_score", "output_score", "effect", "logit_histogram")
"""Columns of `feature` that measurements fill."""


def settings(db: sqlite3.Connection, sae: int) -> dict[str, Any]:
    """The settings of each measurement of a dictionary, by name."""
    found = db.execute("SELECT name, settings FROM measurement WHERE sae = ?", (sae,))
    return {name: stored.parsed("the measurements", text) for name, text in stored.rows("the measurements", found, TEXT, TEXT)}


def put(db: sqlite3.Connection, sae: int, measured: Measured) -> None:
    """Write a measurement of dictionary `sae`, in place of an earlier one of its name."""
    first = schema.feature_id(sae, 0)
    columns: dict[str, list[float | bytes | None]] = {
        name: [_number(value) for value in values.tolist()] for name, values in measured.numbers.items()
    }
    columns |= {name: list(values) for name, values in measured.blobs.items()}
    assert set(columns) <= set(COLUMNS), columns.keys()
    if columns:
        assignments = ", ".join(f"{name} = ?" for name in columns)
        rows = ((*values, first + number) for number, values in enumerate(zip(*columns.values(), strict=True)))
        db.executemany(f"UPDATE feature SET {assignments} WHERE id = ?", rows)
    span = (first, schema.feature_id(sae + 1, 0) - 1)
    for role, tokens in measured.tokens.items():
        db.execute("DELETE FROM token_stat WHERE role = ? AND feature BETWEEN ? AND ?", (schema.ROLES[role], *span))
        terms = _terms(db, sae)
        sql = "INSERT INTO token_stat (feature, role, rank, term, value, rate, score) VALUES (?, ?, ?, ?, ?, ?, ?)"
        db.executemany(sql, _token_rows(first, schema.ROLES[role], terms, tokens))
    for kind, partners in measured.partners.items():
        db.execute("DELETE FROM partner WHERE kind = ? AND feature BETWEEN ? AND ?", (kind, *span))
        sql = "INSERT INTO partner (feature, kind, rank, other, value, together, chance) VALUES (?, ?, ?, ?, ?, ?, ?)"
        db.executemany(sql, _partner_rows(first, kind, partners))
    if "causes" in measured.tokens:
        relabel(db, sae)
    if measured.labels is not None:
        _put_labels(db, sae, measured.labels)
    facts = json.dumps(measured.settings, sort_keys=True, ensure_ascii=False)
    db.execute("INSERT OR REPLACE INTO measurement (sae, name, settings) VALUES (?, ?, ?)", (sae, measured.name, facts))


def _put_labels(db: sqlite3.Connection, sae: int, of: CorpusLabels) -> None:
    db.execute("DELETE FROM corpus_label WHERE sae = ?", (sae,))  # the statistics go with them
    ids = []
    for name, positives in zip(of.names, of.positives_C, strict=True):
        ids.append(next_id(db, "corpus_label"))
        sql = "INSERT INTO corpus_label (id, sae, name, level, positives, total) VALUES (?, ?, ?, ?, ?, ?)"
        db.execute(sql, (ids[-1], sae, name, of.level, int(positives), of.total))
    columns = ("auc", "f1", "threshold", "precision", "recall", "difference")
    assert set(columns) == set(of.columns)
    db.executemany(
        f"INSERT INTO corpus_label_stat (feature, label, {', '.join(columns)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (schema.feature_id(sae, feature), ids[label], *values)
            for feature, label, *values in zip(
                of.features_M.tolist(), of.labels_M.tolist(), *(of.columns[name].tolist() for name in columns), strict=True
            )
        ],
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _terms(db: sqlite3.Connection, sae: int) -> dict[int, int]:
    """The term of each token of the vocabulary."""
    sql = "SELECT token, id FROM term WHERE corpus = (SELECT corpus FROM sae WHERE id = ?) AND kind = 'token'"
    return dict(stored.rows("the tokens of a corpus", db.execute(sql, (sae,)), INT, INT))


def _token_rows(first: int, role: int, terms: dict[int, int], of: TokenRows) -> Iterator[tuple[Any, ...]]:
    for number, each in enumerate(zip(*(column.tolist() for column in of), strict=True)):
        for rank, (token, value, rate, score) in enumerate(zip(*each)):
            if token in terms:
                yield first + number, role, rank, terms[token], value, _number(rate), score


def _partner_rows(first: int, kind: str, of: Partners) -> Iterator[tuple[Any, ...]]:
    others, values, together, chance = (None if column is None else column.tolist() for column in of)
    assert others is not None and values is not None
    for number, row in enumerate(others):
        for rank, other in enumerate(row):
            if other >= 0:
                counts = (None if column is None else column[number][rank] for column in (together, chance))
                yield first + number, kind, rank, other, values[number][rank], *counts
