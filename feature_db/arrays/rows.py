"""Reads many rows of numbers from the tables into arrays, without holding them as Python objects."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.errors import damaged

_AT_ONCE = 1 << 10
"""Rows. More do not fit into the cache of a processor, and are several times slower."""


def columns(
    what: str, cursor: sqlite3.Cursor, dtypes: Sequence[Any], at: Callable[[Sequence[Any]], None] = lambda row: None
) -> list[NDArray[Any]]:
    """The columns of a query as arrays of these types.

    Args:
        what: what the rows are, for the message about damage.
        at: told from time to time the last row that was read.

    Raises:
        DatabaseError: a value is no finite number, or too large for its type.
    """
    parts: list[list[NDArray[Any]]] = [[np.zeros(0, dtype)] for dtype in dtypes]
    while rows := cursor.fetchmany(_AT_ONCE):
        for part, dtype, values in zip(parts, dtypes, zip(*rows), strict=True):
            part.append(_array(what, values, dtype))
        at(rows[-1])
    return [np.concatenate(part) for part in parts]


def _array(what: str, values: Sequence[Any], dtype: Any) -> NDArray[Any]:
    allowed = {int} if np.issubdtype(dtype, np.integer) else {int, float}
    if strange := set(map(type, values)) - allowed:
        raise damaged(what, f"{strange.pop().__name__} where a number belongs")
    try:
        array = np.array(values, dtype)
    except OverflowError as error:
        raise damaged(what, error) from error
    if not np.isfinite(array).all():
        raise damaged(what, "a number is not finite")
    return array
