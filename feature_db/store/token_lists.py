"""Tokens and words that features are related to: the rows of the tables `token_list` and `token_stat`.

What a build finds is packed, one value of bytes for each feature and role: rows of their own need four times the space, and take
longer to write. What is measured afterwards is in `token_stat`, which is searched by term. Up to version 4, all rows were there.

Packed entries are in the order of their rank. The first byte says which columns they have (:func:`_layout`).
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays.rows import columns
from feature_db.errors import damaged
from feature_db.store import schema, stored

_RATE, _PEAK, _HITS, _WIDE = 1, 2, 4, 8
_NONE = 9e99
"""What stands for NULL while rows become arrays: larger than any activation."""
_AT_ONCE = 1 << 12
"""Packed values that are read at once."""


class TokenRows(NamedTuple):
    """Rows by feature, role and rank. Arrays are (N,)."""

    feature: NDArray[np.int64]
    """Ids of features."""
    role: NDArray[np.int64]
    """Ids of roles."""
    rank: NDArray[np.int64]
    term: NDArray[np.int64]
    """Ids of terms."""
    value: NDArray[np.float64]
    score: NDArray[np.float64]
    rate: NDArray[np.float64]
    """NaN where a role has none, like `peak`."""
    peak: NDArray[np.float64]
    hits: NDArray[np.int64]
    """-1 where a role has none."""

    def some(self, index: NDArray[Any]) -> TokenRows:
        """The rows at these places, in their order."""
        return TokenRows(*(column[index] for column in self))


class Packed(NamedTuple):
    """Entries of many features in one role, in the order of features and ranks, as bytes."""

    header: bytes
    size: int
    """Bytes of one entry."""
    content: bytes

    def entries(self, start: int, stop: int) -> bytes:
        """What the column `entries` holds for the feature whose entries are these."""
        return self.header + self.content[start * self.size : stop * self.size]


def packed(
    term: NDArray[np.int64],
    value: NDArray[np.floating[Any]],
    score: NDArray[np.floating[Any]],
    rate: NDArray[np.floating[Any]] | None = None,
    peak: NDArray[np.floating[Any]] | None = None,
    hits: NDArray[np.integer[Any]] | None = None,
) -> Packed:
    """Entries of one role; columns that the role lacks are None."""
    wide = hits is not None and len(hits) > 0 and int(hits.max()) >= 1 << 32
    mask = _RATE * (rate is not None) | _PEAK * (peak is not None) | _HITS * (hits is not None) | _WIDE * wide
    rows = np.empty(len(term), _layout(mask))
    for name, column in (("term", term), ("value", value), ("score", score), ("rate", rate), ("peak", peak), ("hits", hits)):
        if column is not None:
            rows[name] = column
    return Packed(bytes([mask]), rows.dtype.itemsize, rows.tobytes())


@cache
def _layout(mask: int) -> np.dtype[Any]:
    fields = [("term", "<u4"), ("value", "<f4"), ("score", "<f4")]
    fields += [(name, "<f4") for name, bit in (("rate", _RATE), ("peak", _PEAK)) if mask & bit]
    fields += [("hits", "<u8" if mask & _WIDE else "<u4")] if mask & _HITS else []
    return np.dtype(fields)


def check(entries: object, what: str = "the words of a feature") -> NDArray[Any]:
    """Unpacked entries.

    Raises:
        DatabaseError: they are no packed entries.
    """
    if not isinstance(entries, bytes) or not entries or entries[0] > _RATE | _PEAK | _HITS | _WIDE:
        raise damaged(what, f"{entries!r:.40} where packed entries belong")
    layout = _layout(entries[0])
    if (len(entries) - 1) % layout.itemsize:
        raise damaged(what, f"packed entries of {len(entries)} bytes")
    rows = np.frombuffer(entries, layout, offset=1)
    for name in layout.names or ():
        if layout[name].kind == "f" and not np.isfinite(rows[name]).all():
            raise damaged(what, "a number is not finite")
    return rows


def to_json(entries: object) -> str:
    """Packed entries as JSON: for each [term, value, score, rate, peak, hits], null where a role has no such column."""
    rows = check(entries)
    names = rows.dtype.names or ()
    all_of = [rows[n].tolist() if n in names else [None] * len(rows) for n in ("term", "value", "score", "rate", "peak", "hits")]
    return json.dumps(list(zip(*all_of)))


def with_terms(entries: bytes, new: Mapping[int, int]) -> bytes:
    """Packed entries with the ids of their terms replaced."""
    rows = check(entries).copy()
    rows["term"] = [new[term] for term in rows["term"].tolist()]
    return entries[:1] + rows.tobytes()


def put(db: sqlite3.Connection, rows: Collection[tuple[int, int, bytes]]) -> None:
    """Insert packed entries: ids of feature and role, and the bytes."""
    db.executemany("INSERT INTO token_list VALUES (?, ?, ?)", rows)


def read(
    db: sqlite3.Connection,
    span: tuple[int, int],
    roles: Collection[str],
    *,
    what: str = "the words of features",
    at: Callable[[int], None] = lambda feature: None,
) -> TokenRows:
    """The rows of some roles of features, by feature, role and rank.

    Args:
        span: the first and the last id of a feature.
        roles: names of roles.
        what: what the rows are, for the message about damage.
        at: told from time to time the id of a feature that was read.

    Raises:
        DatabaseError: the rows are damaged.
    """
    where = f"feature BETWEEN ? AND ? AND role IN ({', '.join(str(schema.ROLES[role]) for role in roles)})"
    cursor = db.execute(f"SELECT feature, role, entries FROM token_list WHERE {where} ORDER BY feature, role", span)
    parts = list(_unpacked(cursor, what, at))
    single = db.execute(
        f"SELECT feature, role, rank, term, value, score, COALESCE(rate, {_NONE}), COALESCE(peak, {_NONE}), COALESCE(hits, -1) "
        f"FROM token_stat WHERE {where} ORDER BY feature, role, rank",
        span,
    )
    kinds = (np.int64, np.int64, np.int64, np.int64, np.float64, np.float64, np.float64, np.float64, np.int64)
    others = TokenRows(*columns(what, single, kinds, lambda row: at(int(row[0]))))
    for column in (others.rate, others.peak):
        column[column == _NONE] = np.nan
    if not parts:
        return others
    found = TokenRows(*(np.concatenate(column) for column in zip(*parts, others)))
    return found.some(np.lexsort((found.rank, found.role, found.feature)))


def _unpacked(cursor: sqlite3.Cursor, what: str, at: Callable[[int], None]) -> Iterator[TokenRows]:
    """The rows of packed entries. Many values of one layout are unpacked at once."""
    while values := cursor.fetchmany(_AT_ONCE):
        by_layout: dict[int, list[tuple[int, int, bytes]]] = defaultdict(list)
        for feature, role, entries in values:
            if not (isinstance(feature, int) and isinstance(role, int) and isinstance(entries, bytes) and entries):
                raise damaged(what, f"{entries!r:.40} where packed entries belong")
            by_layout[entries[0]].append((feature, role, entries))
        for mask, many in by_layout.items():
            size = _layout(mask & 15).itemsize
            lengths = np.array([len(entries) - 1 for *_, entries in many])
            if (lengths % size).any():
                raise damaged(what, "packed entries of a wrong length")
            rows = check(bytes([mask]) + b"".join(entries[1:] for *_, entries in many), what)
            counts = lengths // size
            names, n = rows.dtype.names or (), len(rows)
            rate, peak = (rows[name].astype(np.float64) if name in names else np.full(n, np.nan) for name in ("rate", "peak"))
            yield TokenRows(
                np.repeat(np.array([feature for feature, *_ in many], np.int64), counts),
                np.repeat(np.array([role for _, role, _ in many], np.int64), counts),
                np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts),
                rows["term"].astype(np.int64),
                rows["value"].astype(np.float64),
                rows["score"].astype(np.float64),
                rate,
                peak,
                rows["hits"].astype(np.int64) if "hits" in names else np.full(n, -1, np.int64),
            )
        at(values[-1][0])


@dataclass(frozen=True)
class Term:
    """A token or word of a corpus."""

    text: str
    token: int | None
    """Its id, for tokens."""
    count: int
    """Occurrences in the corpus."""


def terms(db: sqlite3.Connection, ids: NDArray[np.int64]) -> dict[int, Term]:
    """The terms with these ids.

    Raises:
        DatabaseError: one is missing.
    """
    wanted = np.unique(ids).tolist()
    sql = "SELECT id, text, token, count FROM term WHERE id IN (SELECT value FROM json_each(?))"
    kinds = (stored.INT, stored.TEXT, stored.INT_OR_NONE, stored.INT)
    found = {i: Term(*rest) for i, *rest in stored.rows("the terms", db.execute(sql, (json.dumps(wanted),)), *kinds)}
    if len(found) < len(wanted):
        raise damaged("the words of features", f"there is no term {next(i for i in wanted if i not in found)}")
    return found
