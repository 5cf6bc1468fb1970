"""Checks of what comes out of the tables. Damage or another program may have put anything there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from feature_db.errors import damaged

Row = tuple[Any, ...]
INT, REAL, TEXT, BLOB = "an integer", "a number", "a text", "bytes"
OPTIONAL = {"an integer or nothing": INT, "a number or nothing": REAL, "a text or nothing": TEXT, "bytes or nothing": BLOB}
INT_OR_NONE, REAL_OR_NONE, TEXT_OR_NONE, BLOB_OR_NONE = OPTIONAL
_TYPES: dict[str, tuple[type, ...]] = {INT: (int,), REAL: (int, float), TEXT: (str,), BLOB: (bytes,)}


def row(what: object, values: Row | None, *kinds: str) -> Row:
    """`values`, checked to be of these kinds, column by column.

    Raises:
        DatabaseError: the row is missing, or a column holds something else.
    """
    if values is None:
        raise damaged(what, "a row is missing")
    for value, kind in zip(values, kinds, strict=True):
        if not _is(value, kind):
            raise damaged(what, f"{_shown(value)} where {kind} belongs")
    return values


def rows(what: object, many: Iterable[Row], *kinds: str) -> list[Row]:
    """The same for each of many rows."""
    found = list(many)
    # Column by column, which is several times faster; row by row only to say what is wrong.
    columns = list(zip(*found))
    sound = len(columns) in (0, len(kinds)) and all(map(_all_are, columns, kinds))
    return found if sound else [row(what, values, *kinds) for values in found]


def _all_are(column: Row, kind: str) -> bool:
    types = set(map(type, column))
    allowed = {*_TYPES[OPTIONAL.get(kind, kind)], *([type(None)] if kind in OPTIONAL else [])}
    return types <= allowed and (float not in types or all(math.isfinite(value) for value in column if type(value) is float))


def parsed(what: object, text: str) -> Any:
    """A text as JSON.

    Raises:
        DatabaseError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(what, error) from error


def pieces(what: object, text: str | None) -> list[tuple[int, float]]:
    """The tokens of a word with their shares, from the column `term.pieces`.

    Raises:
        DatabaseError: the text is something else.
    """
    found = parsed(what, text) if text else []
    if not (isinstance(found, list) and all(isinstance(each, list) and len(each) == 2 for each in found)):
        raise damaged(what, f"{_shown(text)} where pairs of tokens and shares belong")
    return [(token, share) for token, share in rows(what, map(tuple, found), INT, REAL)]


def _is(value: object, kind: str) -> bool:
    if kind in OPTIONAL:
        return value is None or _is(value, OPTIONAL[kind])
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, float) and not math.isfinite(value))


def _shown(value: object) -> str:
    return repr(value if not isinstance(value, str | bytes) else value[:40])
