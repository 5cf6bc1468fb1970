"""Labels by the rules that need what was measured after the index: tokens that a clamp of a feature causes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np

from feature_db.labels.evidence import Evidence, TermStat
from feature_db.labels.rules import LABEL_METHODS, automatic
from feature_db.store import schema, stored, token_lists
from feature_db.store.stored import INT
from feature_db.store.tables import add_labels, next_id, refresh_label

_KEPT = 20
"""Rows of a role that are read."""
_CHUNK = 4096


def relabel(db: sqlite3.Connection, sae: int) -> None:
    """Make the labels anew whose evidence is complete now, of the features of dictionary `sae`.

    A dictionary that was indexed with other methods only (`saekit index --labels words`) gets none.
    """
    methods = [name for name, method in LABEL_METHODS.items() if method.measured]
    span = (schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1)
    if db.execute("SELECT 1 FROM label WHERE feature BETWEEN ? AND ? AND method = 'promotes' LIMIT 1", span).fetchone() is None:
        return
    marks = ", ".join("?" * len(methods))
    sql = f"SELECT DISTINCT feature FROM label WHERE feature BETWEEN ? AND ? AND method IN ({marks})"
    changed = {feature for (feature,) in stored.rows("the labels", db.execute(sql, (*span, *methods)), INT)}
    db.execute(f"DELETE FROM label WHERE feature BETWEEN ? AND ? AND method IN ({marks})", (*span, *methods))
    label, roles = next_id(db, "label"), {role for name in methods for role in LABEL_METHODS[name].measured}
    last = db.execute("SELECT COALESCE(MAX(id), 0) FROM feature WHERE id BETWEEN ? AND ?", span).fetchone()[0]
    for first in range(span[0], last + 1, _CHUNK):
        for feature, evidence in _evidence(db, (first, min(first + _CHUNK - 1, last)), roles):
            found = automatic(evidence, methods)
            label = add_labels(db, feature, found, label)
            changed |= {feature} if found else set()
    for feature in sorted(changed):
        refresh_label(db, feature)


def _evidence(db: sqlite3.Connection, span: tuple[int, int], roles: set[str]) -> Iterator[tuple[int, Evidence]]:
    """The rows of some roles of each feature, by its id. Nothing else of the evidence is known here."""
    names = {number: name for name, number in schema.ROLES.items() if name in roles}
    rows = token_lists.read(db, span, roles)
    rows = rows.some(rows.rank < _KEPT)
    known, none = token_lists.terms(db, rows.term), np.zeros(0)
    listed = zip(*(column.tolist() for column in rows))
    for feature, of_feature in groupby(listed, key=itemgetter(0)):
        stats: dict[str, list[TermStat]] = {}
        texts: dict[tuple[str, int], str] = {}
        counts: dict[tuple[str, int], int] = {}
        for _, role, _, i, value, score, rate, peak, hits in of_feature:
            name, term = names[role], known[i]
            item = i if term.token is None else term.token
            facts = (None if rate != rate else rate, None if peak != peak else peak, None if hits < 0 else hits)
            stats.setdefault(name, []).append(TermStat(name, item, value, *facts, score))
            texts[name, item], counts[name, item] = term.text, term.count
        yield (
            feature,
            Evidence(
                stats,
                lambda role, item, texts=texts: texts[role, item],  # type: ignore[misc]
                lambda role, item, counts=counts: counts[role, item],  # type: ignore[misc]
                *(0, none, none, none, none, 0),
                lambda _: (),
                lambda _: 0,
            ),
        )
