"""Compares two feature databases: dictionaries, statistics of features, labels and lists."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from feature_db.errors import typed
from feature_db.records import IndexedSAE
from feature_db.store import connections, read, schema

_RELATIVE = 1e-6
"""Numbers that differ by less are equal: sums depend on the order."""
_IDS = ("id", "sae", "number")
Key = tuple[str, str | None]


@dataclass(frozen=True)
class LabelChange:
    """A label that only one database has, or that has another text in the second."""

    ref: str
    method: str
    model: str | None
    before: str | None
    """Text in the first database; None where it has no such label."""
    after: str | None
    """Text in the second database; None where it has no such label."""


@dataclass(frozen=True)
class FeatureChange:
    """A feature whose statistics differ."""

    ref: str
    columns: dict[str, tuple[Any, Any]]
    """Column of the table `feature` -> its values in the two databases; sizes in bytes of histograms."""


@dataclass
class Difference:
    """How two databases differ. Dictionaries are addresses."""

    removed: list[str] = field(default_factory=list)
    """In the first alone."""
    added: list[str] = field(default_factory=list)
    """In the second alone."""
    weights: list[str] = field(default_factory=list)
    """In both, with other weights. Their features are compared by number if there are as many."""
    features: list[FeatureChange] = field(default_factory=list)
    labels: list[LabelChange] = field(default_factory=list)
    lists: list[LabelChange] = field(default_factory=list)
    """Entries of lists: `method` is the name of the list, the texts are notes."""

    def __bool__(self) -> bool:
        """Whether there is a difference."""
        return any(vars(self).values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes by name."""
        return {
            "dictionaries": {"removed": self.removed, "added": self.added, "weights": self.weights},
            "features": [{"ref": each.ref, "columns": {c: list(v) for c, v in each.columns.items()}} for each in self.features],
            "labels": [vars(each) for each in self.labels],
            "lists": [{"list": each.method, "ref": each.ref, "before": each.before, "after": each.after} for each in self.lists],
        }


def diff(first: str | Path, second: str | Path) -> Difference:
    """How the second database differs from the first. Numbers are equal up to a millionth of their size.

    Args:
        first, second: the files.

    Raises:
        DatabaseError: one is missing, damaged, or of a newer version.
    """
    found = Difference()
    with ExitStack() as stack:
        one, two = (stack.enter_context(_reading(Path(path))) for path in (first, second))
        saes = [{sae.address: sae for sae in read.saes(db, Path(path).parent)} for db, path in ((one, first), (two, second))]
        found.removed = [sae.dictionary for address, sae in saes[0].items() if address not in saes[1]]
        found.added = [sae.dictionary for address, sae in saes[1].items() if address not in saes[0]]
        for address in [each for each in saes[0] if each in saes[1]]:
            a, b = saes[0][address], saes[1][address]
            if a.fingerprint != b.fingerprint:
                found.weights.append(a.dictionary)
            if a.n_features == b.n_features:
                found.features += _features(one, two, a, b)
            found.labels += _changes(a, _labels(one, a), _labels(two, b))
            found.lists += _changes(a, _entries(one, a), _entries(two, b))
    return found


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with typed(path), closing(connections.reading(path)) as db:
        db.execute("BEGIN")
        yield db


def _span(sae: IndexedSAE) -> tuple[int, int]:
    return schema.feature_id(sae.id, 0), schema.feature_id(sae.id + 1, 0) - 1


def _features(one: sqlite3.Connection, two: sqlite3.Connection, a: IndexedSAE, b: IndexedSAE) -> Iterator[FeatureChange]:
    columns = [row[1] for row in one.execute("PRAGMA table_info(feature)") if row[1] not in _IDS]
    theirs = {row[1] for row in two.execute("PRAGMA table_info(feature)")}
    columns = [name for name in columns if name in theirs]
    sql = f"SELECT number, {', '.join(columns)} FROM feature WHERE sae = ? ORDER BY number"
    for (number, *left), (_, *right) in zip(one.execute(sql, (a.id,)), two.execute(sql, (b.id,)), strict=True):
        differ = {name: _shown(x, y) for name, x, y in zip(columns, left, right) if not _equal(x, y)}
        if differ:
            yield FeatureChange(f"feature:{a.dictionary}/{number}", differ)


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, float) and isinstance(y, int | float):
        return abs(x - y) <= _RELATIVE * max(abs(x), abs(y))
    return bool(x == y)


def _shown(x: Any, y: Any) -> tuple[Any, Any]:
    return tuple(len(each) if isinstance(each, bytes) else each for each in (x, y))  # type: ignore[return-value]


Rows = Iterator[tuple[int, Key, str]]
"""Number of the feature, what the text is of, and the text; ascending numbers."""


def _labels(db: sqlite3.Connection, sae: IndexedSAE) -> Rows:
    sql = "SELECT feature, method, model, text FROM label WHERE feature BETWEEN ? AND ? ORDER BY feature, method, model, text"
    for feature, method, model, text in db.execute(sql, _span(sae)):
        yield feature % schema.FEATURES_PER_SAE, (method, model), text


def _entries(db: sqlite3.Connection, sae: IndexedSAE) -> Rows:
    sql = "SELECT feature, name, note FROM list WHERE feature BETWEEN ? AND ? ORDER BY feature, name, note"
    for feature, name, note in db.execute(sql, _span(sae)):
        yield feature % schema.FEATURES_PER_SAE, (name, None), note


def _changes(sae: IndexedSAE, one: Rows, two: Rows) -> list[LabelChange]:
    """What differs, feature by feature. Texts of one method that are not in both are paired as changed."""
    found = []
    for number, (left, right) in _by_feature(one, two):
        for method, model in dict.fromkeys((*left, *right)):
            before, after = (side.get((method, model), []) for side in (left, right))
            gone = [text for text in before if text not in after]
            come = [text for text in after if text not in before]
            for i in range(max(len(gone), len(come))):
                texts = [side[i] if i < len(side) else None for side in (gone, come)]
                found.append(LabelChange(f"feature:{sae.dictionary}/{number}", method, model, *texts))
    return found


def _by_feature(one: Rows, two: Rows) -> Iterator[tuple[int, tuple[dict[Key, list[str]], ...]]]:
    """The rows of both sides by feature, in step: memory for one feature at a time."""
    sides = [groupby(rows, key=lambda row: row[0]) for rows in (one, two)]
    heads = [next(side, None) for side in sides]
    while any(head is not None for head in heads):
        number = min(head[0] for head in heads if head is not None)
        texts: list[dict[Key, list[str]]] = [{}, {}]
        for i, head in enumerate(heads):
            if head is not None and head[0] == number:
                for _, key, text in head[1]:
                    texts[i].setdefault(key, []).append(text)
                heads[i] = next(sides[i], None)
        yield number, tuple(texts)
