"""The labels that are scored, as the database holds them."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from feature_db.errors import damaged
from feature_db.labels.evidence import Rule
from feature_db.labels.rules import HUMAN, LABEL_METHODS
from feature_db.store import schema, stored
from feature_db.store.stored import INT, REAL, TEXT, TEXT_OR_NONE
from feature_db.store.tables import corpus_key


class Given(NamedTuple):
    """A label to score."""

    id: int
    feature: int
    """Number of the feature in its dictionary."""
    method: str
    text: str
    keywords: str
    """The words of its text that are no fixed words of a template; empty where the rule has them."""
    model: str | None
    """The language model that wrote it; None for rules and people."""
    rule: Rule | None
    barred: str = ""
    """Why it must not be scored on held-out documents: it may have been made from them. Empty if it may be scored."""


class Judge(NamedTuple):
    """The language model that a scorer asks, and what it asks."""

    scorer: str
    model: str
    """Its name."""
    prompt: str
    """Hash of the prompt."""


def labels_of(db: sqlite3.Connection, sae: int, features: Sequence[int] | None = None) -> list[Given]:
    """The labels of features of dictionary `sae` that fire, in ascending order of the features.

    Args:
        features: numbers of features; None: all.
    """
    first, last = schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1
    span = (first, last) if not features else (first + min(features), first + max(features))
    found = db.execute(
        "SELECT label.id, feature, method, text, keywords, model, rule, label.corpus "
        "FROM label JOIN feature ON feature.id = label.feature "
        "WHERE label.feature BETWEEN ? AND ? AND feature.count > 0 ORDER BY label.feature, label.id",
        span,
    )
    wanted = None if features is None else frozenset(features)
    rows = stored.rows("the labels", found, INT, INT, TEXT, TEXT, TEXT, TEXT_OR_NONE, TEXT_OR_NONE, TEXT_OR_NONE)
    key = corpus_key(db, sae)
    return [
        Given(i, feature - first, method, text, keywords, model, _rule(rule), _barred(method, corpus, key))
        for i, feature, method, text, keywords, model, rule, corpus in rows
        if wanted is None or feature - first in wanted
    ]


def scored(db: sqlite3.Connection, sae: int, metric: str, judge: Judge | None = None) -> set[int]:
    """Ids of the labels of dictionary `sae` that have a score under this metric; with a judge, one by this judge."""
    span = (schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1)
    sql = "SELECT label.id FROM label JOIN label_score ON label = label.id WHERE feature BETWEEN ? AND ? AND metric = ?"
    if judge is None:
        found = db.execute(sql, (*span, metric))
    else:
        found = db.execute(f"{sql} AND judge = ? AND label_score.prompt = ?", (*span, metric, judge.model, judge.prompt))
    return {row[0] for row in stored.rows("the labels", found, INT)}


def quality(db: sqlite3.Connection, sae: int) -> list[dict[str, Any]]:
    """See :meth:`feature_db.annotations.Annotations.label_quality`."""
    span = (schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1)
    found = db.execute(
        "SELECT feature, method, accuracy.value, f1.value FROM label "
        "JOIN label_score accuracy ON accuracy.label = label.id AND accuracy.metric = 'balanced_accuracy' "
        "JOIN label_score f1 ON f1.label = label.id AND f1.metric = 'f1' "
        "WHERE feature BETWEEN ? AND ? ORDER BY feature, label.id",
        span,
    )
    by_method: dict[str, list[tuple[float, float]]] = {}
    best: dict[int, tuple[float, float]] = {}
    for feature, method, *scores in stored.rows("the scores of labels", found, INT, TEXT, REAL, REAL):
        pair = (scores[0], scores[1])
        by_method.setdefault(method, []).append(pair)
        best[feature] = max(best.get(feature, pair), pair)
    rows = sorted(by_method.items(), key=lambda item: -len(item[1]))
    return [_quality(name, pairs) for name, pairs in [*rows, *([("best of a feature", list(best.values()))] if best else [])]]


def _quality(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    accuracy = [pair[0] for pair in pairs]
    over = {f"over {bound}": sum(value > bound for value in accuracy) for bound in (0.7, 0.8, 0.9)}
    f1 = statistics.median(pair[1] for pair in pairs)
    return {"method": name, "labels": len(pairs), "median": statistics.median(accuracy), "median f1": f1, **over}


def _barred(method: str, corpus: str | None, key: str) -> str:
    """Rules are made anew by each index, from the documents that it counts. People need no documents.

    Args:
        method: of the label.
        corpus: key of the documents that it was made from.
        key: of the documents that the index counted.
    """
    if method == HUMAN or method in LABEL_METHODS or corpus == key:
        return ""
    if corpus is None:
        return "it is not known from which documents the label was made: they may be held out"
    return "the label was made from an index of another text or split, whose documents may be held out now"


def _rule(text: str | None) -> Rule | None:
    try:
        return None if text is None else Rule.from_json(text)
    except (ValueError, RecursionError) as error:
        raise damaged("the labels", error) from error
