"""Which of the features that were found are shown, and in which order."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_db.arguments import whole
from feature_db.search.columns import column
from feature_db.store import stored
from feature_db.store.schema import feature_id
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from feature_db.search.lookup import Lookup

_MOST = 1 << 40  # more than any database has; larger numbers do not fit into the integers of SQLite


@dataclass(frozen=True)
class Page:
    """A part of the features that were found.

    Raises:
        ConfigError: a number is not possible, or there is no such column.
    """

    k: int = 10
    """Number of features."""
    offset: int = 0
    """Features that are left out before the first."""
    sort: str | None = None
    """`score` (None), or a column of :data:`feature_db.search.columns.COLUMNS`, ascending; `density desc` descending."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", min(whole(self.k, "k", least=1), _MOST))
        object.__setattr__(self, "offset", min(whole(self.offset, "offset", least=0), _MOST))
        self.order  # noqa: B018  (checks the column)

    @property
    def order(self) -> tuple[str, bool] | None:
        """The column to sort by and whether it descends; None for the score.

        Raises:
            ConfigError: there is no such column.
        """
        if self.sort is None:
            return None
        if not isinstance(self.sort, str):
            raise ConfigError(f"sort is {self.sort!r:.40}, which is not text.", "Give a column, as 'density' or 'density desc'.")
        name, _, direction = self.sort.strip().partition(" ")
        direction = direction.strip().casefold()
        if direction not in ("", "asc", "desc"):
            raise ConfigError(f"The order {direction!r:.40} does not exist.", "Write asc or desc after the column.")
        if name == "score" and direction in ("", "desc"):
            return None
        column(name)
        return name, direction == "desc"

    @property
    def end(self) -> int:
        """Number of features up to the last of the page."""
        return self.offset + self.k

    def why(self, db: sqlite3.Connection, sae: int) -> Callable[[int], str]:
        """Says the value of the column to sort by, for a feature of dictionary `sae` with this number."""

        def said(number: int) -> str:
            if self.order is None:
                return "it is in the dictionary"
            name, _ = self.order
            sql = f"SELECT {column(name).sql} FROM feature WHERE feature.id = ?"
            (value,) = db.execute(sql, (feature_id(sae, number),)).fetchone()
            return f"{name} {value:.4g}" if isinstance(value, int | float) else f"{name} {value or 'unknown'}"

        return said

    def of(self, lookup: Lookup, ids: NDArray[np.int64], score: NDArray[np.floating[Any]]) -> list[int]:
        """Indices of the features on the page, from the ids and scores of all that were found. Ties are ordered by id."""
        if self.order is None:
            return _first(ids, -score, self.end)[self.offset :].tolist()
        name, descends = self.order
        if column(name).in_arrays:
            values = lookup.column(name, ids)
            return _first(ids, -values if descends else values, self.end)[self.offset :].tolist()
        of = column(name)
        place = {identity: i for i, identity in enumerate(ids.tolist())}
        sql = of.sql if of.numeric else f"COALESCE({of.sql}, '')"
        found = lookup.db.execute(
            f"SELECT feature.id FROM json_each(?) AS wanted CROSS JOIN feature ON feature.id = wanted.value "
            f"ORDER BY {sql} IS NULL, {sql} {'DESC' if descends else 'ASC'}, feature.id LIMIT ? OFFSET ?",
            (json.dumps(ids.tolist()), self.k, self.offset),
        )
        return [place[row[0]] for row in stored.rows("the features", found, stored.INT)]


def _first(ids: NDArray[np.int64], values: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Indices of the n smallest values, ordered, ties by id."""
    few = np.arange(len(values)) if n >= len(values) else np.flatnonzero(values <= np.partition(values, n - 1)[n - 1])
    return few[np.lexsort((ids[few], values[few]))][:n]
