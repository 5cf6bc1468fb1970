"""Columns of all features of a dictionary as arrays, for tables and charts of many features."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_db.records import IndexedSAE
from feature_db.search.arrays import Arrays
from feature_db.search.columns import column
from feature_db.search.query import Filter
from feature_db.search.where import Columns, condition
from feature_db.store import stored, vectors
from feature_db.store.addressed import Addressed
from feature_db.store.read import label_of
from feature_db.store.schema import feature_id

if TYPE_CHECKING:
    from saekit.names.address import Address
    from saekit.names.site import Site

_KEPT = 64
"""Columns that are kept. One of 65,536 numbers has 512 kB."""
_State = tuple[tuple[int, int], ...]


class ColumnCache:
    """Columns that only the tables of a database have, each read once for a state of its file. Safe to share by threads.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock, self._mapping = threading.Lock(), threading.Lock()
        self._kept: dict[tuple[int, str, str], tuple[_State, NDArray[Any]]] = {}
        self._maps: dict[tuple[int, str], tuple[NDArray[np.float32], tuple[float, float]]] = {}

    def of(self, db: sqlite3.Connection, sae: IndexedSAE, name: str, *, ranked: bool = False) -> NDArray[Any]:
        """(F,) values of a column: float64 with NaN for unknown ones, or text; or the ranks of these texts."""
        key, state = (sae.id, sae.fingerprint, f"{name} ranks" if ranked else name), self._state()
        with self._lock:
            known = self._kept.get(key)
        if known is not None and known[0] == state:
            return known[1]
        found = np.unique(self.of(db, sae, name).astype(str), return_inverse=True)[1] if ranked else _read(db, sae, name)
        with self._lock:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = state, found
        return found

    def map_of(self, sae: IndexedSAE, live_F: NDArray[np.bool_]) -> tuple[NDArray[np.float32], tuple[float, float]]:
        """Where the features of a dictionary are on a map of their decoder directions; see :func:`projected`."""
        key = sae.id, sae.fingerprint
        with self._mapping:
            if key not in self._maps:
                self._maps[key] = projected(vectors.mapped(sae), live_F)
            return self._maps[key]

    def _state(self) -> _State:
        """What changes whenever the file or its log is written."""
        facts = []
        for path in (self._path, self._path.with_name(f"{self._path.name}-wal")):
            try:
                found = path.stat()
            except OSError:
                continue
            facts.append((found.st_mtime_ns, found.st_size))
        return tuple(facts)


def projected(vectors_FD: NDArray[np.float32], live_F: NDArray[np.bool_]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Directions of length 1 on the first two principal components of those of live features.

    Args:
        vectors_FD: (F, d) directions.
        live_F: (F,) features that the components are fitted to.

    Returns:
        (F, 2) places, NaN for directions without length; and the shares of the variance that the two components have.
    """
    from sklearn.decomposition import PCA

    directions_FD = np.array(vectors_FD, np.float32)
    length_F = np.linalg.norm(directions_FD, axis=1)
    known_F = length_F > 0
    directions_FD[known_F] /= length_F[known_F, None]
    places_F2 = np.full((len(directions_FD), 2), np.nan, np.float32)
    fitted = known_F & live_F
    if fitted.sum() < 3 or directions_FD.shape[1] < 2:
        return places_F2, (0.0, 0.0)
    pca = PCA(2, svd_solver="randomized", random_state=0).fit(directions_FD[fitted])
    places_F2[known_F] = pca.transform(directions_FD[known_F])
    first, second = pca.explained_variance_ratio_.tolist()
    return places_F2, (first, second)


class Tables:
    """The part of a :class:`feature_db.FeatureDB` that gives columns of all features of a dictionary.

    All methods raise

    - UnknownSite: no such dictionary is indexed;
    - WorkspaceError: another dictionary is there now;
    - ConfigError: there is no such column, or a condition cannot be read;
    - DatabaseError: the file is damaged.
    """

    _reading: Callable[[], AbstractContextManager[sqlite3.Connection]]
    _addressed: Addressed
    _arrays: Arrays
    _columns: ColumnCache

    def column(self, dictionary: str | Site | Address, name: str) -> NDArray[Any]:
        """A column of :data:`feature_db.search.columns.COLUMNS` for all features of a dictionary, in the order of their numbers.

        Returns:
            (F,) float64, NaN where the value is unknown; or text, empty where there is none.
        """
        of, sae = column(name), self._addressed.one(dictionary)
        if of.in_arrays:
            arrays = self._arrays.features.of(sae)
            found = arrays.column(name, np.arange(sae.n_features))
            return np.array([*arrays.kinds, ""])[found] if name == "kind" else np.asarray(found, np.float64)
        with self._reading() as db:
            return self._columns.of(db, sae, name)

    def values(
        self, dictionary: str | Site | Address, names: Sequence[str], numbers: Sequence[int]
    ) -> dict[str, NDArray[np.float64]]:
        """Columns of a few features: by name (n,) float64 in the order of `numbers`, NaN where a value is unknown."""
        sae = self._addressed.one(dictionary)
        ids = [feature_id(sae.id, number) for number in numbers]
        chosen = ", ".join(column(name).sql for name in names)
        sql = f"SELECT feature.id, {chosen} FROM feature WHERE feature.id IN (SELECT value FROM json_each(?))"
        with self._reading() as db:
            rows = db.execute(sql, (json.dumps(ids),)).fetchall()
        kinds = (stored.INT, *(stored.REAL_OR_NONE for _ in names))
        found = {i: values for i, *values in stored.rows(f"the features of {sae.dictionary}", rows, *kinds)}
        nothing = [None] * len(names)
        table = np.array([[np.nan if v is None else v for v in found.get(i, nothing)] for i in ids], np.float64)
        return dict(zip(names, table.reshape(len(ids), len(names)).T))

    def matching(self, dictionary: str | Site | Address, where: str) -> NDArray[np.int64]:
        """Numbers of the features of a dictionary that fulfil a condition (:mod:`feature_db.search.where`), ascending."""
        sae = self._addressed.one(dictionary)
        chosen = Filter([sae.id], None, (0.0, 1.0), False, condition(where))
        every = np.arange(sae.n_features)
        with self._reading() as db:
            arrays = self._arrays.features.of(sae)
            passes = chosen.passes(Columns(arrays, every, db))
            for each in chosen.rest:
                sql = f"SELECT number FROM feature WHERE sae = ? AND {each.sql}"
                found = db.execute(sql, (sae.id, *each.parameters)).fetchall()
                passes &= np.isin(every, [number for (number,) in stored.rows("the features", found, stored.INT)])
        return every[passes]

    def ranks(self, dictionary: str | Site | Address, name: str) -> NDArray[np.int64]:
        """(F,) the place of each feature's value among all different values of a column of text, in alphabetical order."""
        sae = self._addressed.one(dictionary)
        with self._reading() as db:
            return self._columns.of(db, sae, name, ranked=True)

    def map_of(self, dictionary: str | Site | Address) -> tuple[NDArray[np.float32], tuple[float, float]]:
        """The decoder directions of a dictionary in two dimensions: :func:`projected`, computed once."""
        sae = self._addressed.one(dictionary)
        return self._columns.map_of(sae, self.column(dictionary, "count") > 0)

    def shown_labels(self, dictionary: str | Site | Address, numbers: Sequence[int]) -> list[str]:
        """The label that is shown of each of some features."""
        sae = self._addressed.one(dictionary)
        with self._reading() as db:
            return [label_of(db, feature_id(sae.id, number)) for number in numbers]


def _read(db: sqlite3.Connection, sae: IndexedSAE, name: str) -> NDArray[Any]:
    of = column(name)
    rows = db.execute(f"SELECT {of.sql} FROM feature WHERE sae = ? ORDER BY number", (sae.id,)).fetchall()
    what = f"the {name} of the features of {sae.dictionary}"
    kind = stored.REAL_OR_NONE if of.numeric else stored.TEXT_OR_NONE
    values = [value for (value,) in stored.rows(what, rows, kind)]
    if of.numeric:
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array([value or "" for value in values], object)
