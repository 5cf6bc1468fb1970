"""The rows of one dictionary's features, as arrays: the columns of `feature`, and which features have a term in a role.

F features, E entries (relations to a token or word), W entries of the role `fires_word`, T pairs of a role and a term that have
entries.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays import files
from feature_db.arrays.rows import columns
from feature_db.errors import damaged
from feature_db.records import IndexedSAE
from feature_db.store import stored, token_lists
from feature_db.store.schema import FEATURES_PER_SAE, ROLES, feature_id
from feature_db.store.stored import TEXT
from saekit.errors import DatabaseError
from saekit.progress import track

SUFFIX = ".features.safetensors"
_TERMS = 1 << 40
"""Ids of terms are below this number, so that role * _TERMS + term is different for each pair."""
OF_BUILD = ("fires_word", "fires_token", "peaks", "before", "context", "promotes", "suppresses")
"""Roles whose rows a build writes, and nothing changes afterwards."""
_LONG = 50_000
"""Features from which on a progress bar is shown."""


class Entries(NamedTuple):
    """Rows of one role, ordered by term and feature."""

    features: NDArray[np.int64]
    """Numbers of features."""
    terms: NDArray[np.int64]
    """Ids of terms."""
    values: NDArray[np.float32]
    scores: NDArray[np.float32]


class Words(NamedTuple):
    """Rows of the role `fires_word`, ordered by feature and rank."""

    features: NDArray[np.int64]
    terms: NDArray[np.int64]
    shares: NDArray[np.float32]
    rates: NDArray[np.float32]


@dataclass(frozen=True)
class FeatureArrays:
    """The rows of one dictionary's features. The arrays may be memory-mapped."""

    kinds: tuple[str, ...]
    """All kinds of features there are, in the order of SQL."""
    density_F: NDArray[np.float64]
    count_F: NDArray[np.int64]
    mean_F: NDArray[np.float64]
    max_F: NDArray[np.float64]
    kind_F: NDArray[np.uint8]
    """Indices of `kinds`."""
    key_T: NDArray[np.int64]
    """role * 2^40 + term, ascending."""
    begin_T: NDArray[np.int64]
    """(T + 1) where the entries of each pair begin."""
    feature_E: NDArray[np.int32]
    """Ascending for each pair. The entries of `fires_word` are the first ones."""
    value_E: NDArray[np.float32]
    score_E: NDArray[np.float32]
    rate_W: NDArray[np.float32]
    """Share of the word's occurrences on which the feature fires."""
    rank_W: NDArray[np.uint16]
    """Place of the word among those that the feature fires on."""

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.density_F)

    def column(self, name: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """The column density, count, mean, max, number or kind (as indices of `kinds`) of the features with these numbers."""
        if name == "number":
            return numbers
        column_F: NDArray[Any] = getattr(self, f"{name}_F")
        # A slice reads the file in order, which is faster than a list of all numbers.
        return np.asarray(column_F) if len(numbers) == len(column_F) else column_F[numbers]

    def entries(self, role: str, terms: Iterable[int]) -> Entries:
        """The features that have one of the terms in a role of :data:`OF_BUILD`."""
        keys = np.array(sorted(terms), np.int64) + ROLES[role] * _TERMS
        place = np.searchsorted(self.key_T, keys)
        place = place[self.key_T[np.minimum(place, len(self.key_T) - 1)] == keys] if len(self.key_T) else place[:0]
        sizes = self.begin_T[place + 1] - self.begin_T[place]
        spans = [slice(start, start + size) for start, size in zip(self.begin_T[place].tolist(), sizes.tolist())]

        def joined(array_E: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([array_E[:0], *(array_E[span] for span in spans)])

        features = joined(self.feature_E).astype(np.int64)
        return Entries(features, np.repeat(self.key_T[place] % _TERMS, sizes), joined(self.value_E), joined(self.score_E))

    def words(self) -> Words:
        """The entries of `fires_word`, ordered by feature and rank."""
        n = len(self.rank_W)
        feature_W, place_W = self.feature_E[:n], np.repeat(np.arange(len(self.key_T)), np.diff(self.begin_T))[:n]
        order = np.lexsort((self.rank_W, feature_W))
        terms = self.key_T[place_W[order]] % _TERMS
        return Words(feature_W[order].astype(np.int64), terms, self.value_E[:n][order], self.rate_W[order])

    def terms(self) -> NDArray[np.int64]:
        """Ids of terms, ascending for each role."""
        return self.key_T % _TERMS

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "kinds"}

    def texts(self) -> dict[str, str]:
        """What is no array."""
        return {"kinds": json.dumps(self.kinds)}


def from_rows(db: sqlite3.Connection, sae: IndexedSAE) -> FeatureArrays:
    """The arrays of a dictionary, from the rows of the database.

    Raises:
        DatabaseError: the rows are damaged.
    """
    first, last = feature_id(sae.id, 0), feature_id(sae.id + 1, 0) - 1
    what, n = f"the features of {sae.dictionary}", sae.n_features
    kinds = tuple(
        kind
        for (kind,) in stored.rows(
            what, db.execute("SELECT DISTINCT kind FROM feature WHERE sae = ? ORDER BY 1", (sae.id,)), TEXT
        )
    )
    if len(kinds) > 256:
        raise damaged(what, f"{len(kinds)} kinds of features")
    marks = " ".join(f"WHEN ? THEN {i}" for i in range(len(kinds))) or "WHEN NULL THEN 0"
    cursor = db.execute(
        f"SELECT number, density, count, mean, max, CASE kind {marks} END FROM feature WHERE sae = ? ORDER BY number",
        (*kinds, sae.id),
    )
    number, density, count, mean, largest, kind = columns(
        what, cursor, (np.int64, np.float64, np.int64, np.float64, np.float64, np.uint8)
    )
    if not np.array_equal(number, np.arange(n)):
        raise damaged(what, f"{len(number)} rows for {n} features")
    words = f"the words of {sae.dictionary}"
    with track("reading words of", n, unit="features", subject=sae.dictionary, enabled=n >= _LONG) as bar:
        rows = token_lists.read(db, (first, last), OF_BUILD, what=words, at=lambda feature: bar.update(feature - first))
    feature_E = (rows.feature % FEATURES_PER_SAE).astype(np.int32)
    role, term = rows.role, rows.term
    value, score = rows.value.astype(np.float32), rows.score.astype(np.float32)
    rate, rank = np.nan_to_num(rows.rate).astype(np.float32), rows.rank.astype(np.uint16)
    del rows
    if not files.inside(term, _TERMS) or not files.inside(feature_E, n) or not files.inside(role, len(ROLES)):
        raise damaged(words, "an id is impossible")
    key_E = role * np.int64(_TERMS) + term
    order = np.argsort(key_E, kind="stable")  # keeps the order of features
    of_words = order[: int((role == ROLES["fires_word"]).sum())]
    key_T, begin = np.unique(key_E[order], return_index=True)
    return FeatureArrays(
        kinds,
        density,
        count,
        mean,
        largest,
        kind,
        key_T,
        np.append(begin, len(order)).astype(np.int64),
        feature_E[order],
        value[order],
        score[order],
        rate[of_words],
        rank[of_words],
    )


def mapped(path: Path, n_features: int) -> tuple[FeatureArrays, dict[str, str]]:
    """The arrays in a file, memory-mapped, and the texts in it.

    Raises:
        DatabaseError: the file is missing or damaged, or holds another number of features.
    """
    arrays, texts = files.mapped(path)
    try:
        kinds = json.loads(texts["kinds"])
        found = FeatureArrays(tuple(kinds), **{field.name: arrays[field.name] for field in fields(FeatureArrays)[1:]})
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DatabaseError(f"The arrays of features in {path} cannot be read: {error}.", files.HINT) from error
    if not _agrees(found, n_features):
        raise DatabaseError(f"The arrays of features in {path} are not those of {n_features} features.", files.HINT)
    return found, texts


def _agrees(found: FeatureArrays, n_features: int) -> bool:
    """Whether the arrays fit together, so that no index in them leads outside."""
    T, E, W, F = len(found.key_T), len(found.feature_E), len(found.rate_W), n_features
    shapes = {
        "density_F": (F,), "count_F": (F,), "mean_F": (F,), "max_F": (F,), "kind_F": (F,), "key_T": (T,), "begin_T": (T + 1,),
        "feature_E": (E,), "value_E": (E,), "score_E": (E,), "rate_W": (W,), "rank_W": (W,),
    }  # fmt: skip
    if any(getattr(found, name).shape != shape for name, shape in shapes.items()):
        return False
    if not all(isinstance(kind, str) for kind in found.kinds) or not files.inside(found.kind_F, len(found.kinds)):
        return False
    if not files.ascending(found.begin_T, E) or found.begin_T[np.searchsorted(found.key_T, _TERMS)] != W:
        return False
    return files.inside(found.feature_E, F) and bool((np.diff(found.key_T) > 0).all())
