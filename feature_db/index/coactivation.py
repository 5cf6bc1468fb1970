"""Features that fire on the same tokens: counts of pairs in bounded memory, and the partners of each feature.

Small dictionaries count all pairs, exactly. Larger ones keep a table of `slots` partners for each feature, in sets of
:data:`WAYS`: feature g goes to set `g % (slots / WAYS)` of its partner. In a full set, Space-Saving (Metwally et al. 2005)
replaces the partner with the fewest co-firings. A partner is therefore never missed if it fires on more than 1/WAYS of the
co-firings that fall into its set, which is about 1/slots of all. Each table entry knows how many co-firings it may have missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

if TYPE_CHECKING:
    from feature_db.index.accumulators import Block, Moments

Array = np.ndarray[Any, Any]
WAYS = 8
STRONGEST = 256
"""A token on which more features fire counts with this number of the strongest."""
LEAST = 5
"""Co-firings below which a pair is no partner: the ratio to chance of rare pairs is noise."""
KINDS = ("pmi", "correlation")
KEPT = 10
"""Partners of each kind that are kept."""


class AllPairs(NamedTuple):
    """Counts of all pairs of a range of features with the features before them: pair (f, g), g < f, is at f (f - 1) / 2 + g."""

    both: NDArray[np.uint32]
    """Tokens on which both fire."""
    product: NDArray[np.float64]
    """Sum of the products of their activations."""

    @classmethod
    def empty(cls, first: int, stop: int) -> AllPairs:
        n = _row(stop) - _row(first)
        return cls(np.zeros(n, np.uint32), np.zeros(n, np.float64))


class Table(NamedTuple):
    """The partners that fire most often with each feature. Arrays are (F, slots)."""

    item: NDArray[np.int32]
    """The partner; -1 if the slot is free."""
    both: NDArray[np.uint32]
    """Tokens on which both fire, since the partner entered."""
    slack: NDArray[np.uint32]
    """Upper bound of the tokens before it entered."""
    product: NDArray[np.float64]
    """Sum of the products of their activations, since the partner entered."""

    @classmethod
    def empty(cls, F: int, slots: int) -> Table:
        shape = F, slots
        return cls(
            np.full(shape, -1, np.int32), np.zeros(shape, np.uint32), np.zeros(shape, np.uint32), np.zeros(shape, np.float64)
        )


class Candidates(NamedTuple):
    """Pairs of consecutive features with others: those of feature n of them are entries begin[n] to begin[n + 1]."""

    begin: NDArray[np.int64]
    other: Array
    both: Array
    slack: Array
    product: Array


class Partners(NamedTuple):
    """The partners of consecutive features, the best first. Arrays are (features, kinds, KEPT)."""

    other: NDArray[np.int32]
    """-1 where there are fewer."""
    value: NDArray[np.float64]
    """By kind: log2(both / chance), Pearson's correlation."""
    both: NDArray[np.int64]
    chance: NDArray[np.float64]
    slack: NDArray[np.int64]

    def rows(self) -> list[list[tuple[str, int, int, float, int, float, int]]]:
        """For each feature its rows of the table `partner`: kind, rank, other, value, together, chance, missed."""
        found: list[list[tuple[str, int, int, float, int, float, int]]] = [[] for _ in self.other]
        feature, kind, rank = np.nonzero(self.other >= 0)
        columns = [each[feature, kind, rank].tolist() for each in self]
        for f, k, *row in zip(feature.tolist(), kind.tolist(), rank.tolist(), *columns):
            found[f].append((KINDS[k], *row))
        return found


class Pairs:
    """Co-firings of features `own` of a dictionary with all of its features.

    Args:
        n_features: features F of the dictionary.
        slots: partners that the table holds for each feature. All pairs are counted if F is at most WAYS * slots: they then need
            about as much memory.
        own: the features whose partners are counted; with all pairs, each pair belongs to its later feature.
    """

    def __init__(self, n_features: int, slots: int, own: range | None = None) -> None:
        self.n_features, self.own = n_features, range(n_features) if own is None else own
        sets = max(1, slots // WAYS)
        self.counts: AllPairs | Table = (
            AllPairs.empty(self.own.start, self.own.stop)
            if n_features <= WAYS * slots
            else Table.empty(len(self.own), sets * WAYS)
        )

    def add(self, block: Block) -> None:
        """Add a block whose entries are of all features."""
        add = _add_all if isinstance(self.counts, AllPairs) else _add_to_table
        add(block, self.own.start, self.own.stop, STRONGEST, self.counts)


class PartnersOf:
    """The partners of the features of a dictionary, computed in blocks.

    Besides the counts, it needs at most 4 bytes for each entry of a table, and the pairs of one block.

    Args:
        pairs: co-firings of all features.
        moments: counts and sums of the same tokens.
        n_tokens: number of these tokens.
    """

    def __init__(self, pairs: Pairs, moments: Moments, n_tokens: int) -> None:
        self._counts, self._moments, self._n = pairs.counts, moments, n_tokens
        self._places = None if isinstance(pairs.counts, AllPairs) else _Places.of(pairs.counts)

    def of(self, block: slice) -> Partners:
        """The partners of consecutive features."""
        c, m = self._candidates(block), self._moments
        entry, value = _best(c, block.start, m.firing, m.total, m.square, self._n, KEPT)
        if not len(c.other):
            zeros = np.zeros(entry.shape, np.int64)
            return Partners(entry.astype(np.int32), value, zeros, zeros.astype(np.float64), zeros)
        other = np.where(entry >= 0, c.other[entry], -1)
        chance = m.firing[block, None, None] / max(self._n, 1) * m.firing[other]
        return Partners(other, value, c.both[entry].astype(np.int64), chance, c.slack[entry].astype(np.int64))

    def _candidates(self, block: slice) -> Candidates:
        if isinstance(self._counts, AllPairs):
            return _of_all(self._counts, block.start, block.stop, len(self._moments.firing))
        assert self._places is not None
        return _of_table(self._counts, self._places, block.start, block.stop)


@njit(cache=True, nogil=True)
def _row(f: int) -> int:
    """Where the pairs of feature f with the features before it begin."""
    return f * (f - 1) // 2


@njit(cache=True, nogil=True)
def _firing(block: Block, i: int, most: int, features: Array, values: Array) -> int:
    """Write the features that fire on row i, and their activations, into arrays; returns their number, at most `most`."""
    n = 0
    for j in range(block.values.shape[1]):
        if block.values[i, j] > 0:
            features[n], values[n] = block.indices[i, j], block.values[i, j]
            n += 1
    if n > most:
        strongest = np.argsort(-values[:n], kind="mergesort")[:most]
        features[:most], values[:most] = features[strongest], values[strongest]
    return min(n, most)


@njit(cache=True, nogil=True)
def _add_all(block: Block, first: int, stop: int, most: int, pairs: AllPairs) -> None:
    features, values = np.empty(block.values.shape[1], np.int64), np.empty(block.values.shape[1], np.float64)
    for i in range(block.values.shape[0]):
        if not block.counted[i]:
            continue
        n = _firing(block, i, most, features, values)
        for a in range(n):
            f = features[a]
            if f < first or f >= stop:
                continue
            row = _row(f) - _row(first)
            for b in range(n):
                if features[b] < f:
                    pairs.both[row + features[b]] += 1
                    pairs.product[row + features[b]] += values[a] * values[b]


@njit(cache=True, nogil=True)
def _add_to_table(block: Block, first: int, stop: int, most: int, t: Table) -> None:
    features, values = np.empty(block.values.shape[1], np.int64), np.empty(block.values.shape[1], np.float64)
    sets = t.item.shape[1] // WAYS
    for i in range(block.values.shape[0]):
        if not block.counted[i]:
            continue
        n = _firing(block, i, most, features, values)
        for a in range(n):
            if features[a] < first or features[a] >= stop:
                continue
            f = features[a] - first
            for b in range(n):
                if a == b:
                    continue
                g = features[b]
                begin = (g % sets) * WAYS
                slot = begin
                while slot < begin + WAYS and t.item[f, slot] >= 0 and t.item[f, slot] != g:
                    slot += 1
                if slot == begin + WAYS:
                    slot = begin
                    for s in range(begin + 1, begin + WAYS):
                        if t.both[f, s] + t.slack[f, s] < t.both[f, slot] + t.slack[f, slot]:
                            slot = s
                    t.slack[f, slot] += t.both[f, slot]
                    t.both[f, slot], t.product[f, slot] = 0, 0.0
                t.item[f, slot] = g
                t.both[f, slot] += 1
                t.product[f, slot] += values[a] * values[b]


@njit(cache=True, nogil=True)
def _of_all(pairs: AllPairs, start: int, stop: int, n_features: int) -> Candidates:
    begin = np.zeros(stop - start + 1, np.int64)
    for fill in range(2):  # count the entries, then write them
        size = begin[-1] if fill else 0
        other, count, product = np.empty(size, np.int32), np.empty(size, np.uint32), np.empty(size, np.float64)
        at = 0
        for f in range(start, stop):
            begin[f - start] = at
            for g in range(n_features):
                if g == f:
                    continue
                place = _row(f) + g if g < f else _row(g) + f
                if pairs.both[place] >= LEAST:
                    if fill:
                        other[at], count[at], product[at] = g, pairs.both[place], pairs.product[place]
                    at += 1
        begin[stop - start] = at
    return Candidates(begin, other, count, np.zeros(len(count), np.uint32), product)


class _Places(NamedTuple):
    """Where each feature stands in the tables of others: those of feature g are `place[begin[g]:begin[g + 1]]`."""

    begin: NDArray[np.int64]
    place: Array
    """Places in the flat arrays of the table, in increasing order, of entries with at least LEAST co-firings."""

    @classmethod
    def of(cls, table: Table) -> _Places:
        begin = _begins(table.item, table.both)
        place = np.empty(begin[-1], np.uint32 if table.item.size <= 1 << 32 else np.int64)
        _fill_places(table.item, table.both, begin[:-1].copy(), place)
        return cls(begin, place)


@njit(cache=True, nogil=True)
def _begins(item: Array, both: Array) -> NDArray[np.int64]:
    begin = np.zeros(len(item) + 1, np.int64)
    for f in range(item.shape[0]):
        for s in range(item.shape[1]):
            if item[f, s] >= 0 and both[f, s] >= LEAST:
                begin[item[f, s] + 1] += 1
    return np.cumsum(begin)


@njit(cache=True, nogil=True)
def _fill_places(item: Array, both: Array, following: NDArray[np.int64], place: Array) -> None:
    for f in range(item.shape[0]):
        for s in range(item.shape[1]):
            g = item[f, s]
            if g >= 0 and both[f, s] >= LEAST:
                place[following[g]] = f * item.shape[1] + s
                following[g] += 1


def _of_table(table: Table, places: _Places, start: int, stop: int) -> Candidates:
    """The pairs of features start to stop. A pair may stand in the tables of both: the higher count is nearer to the truth."""
    slots = table.item.shape[1]
    own, slot = np.nonzero((table.item[start:stop] >= 0) & (table.both[start:stop] >= LEAST))
    theirs = places.place[places.begin[start] : places.begin[stop]].astype(np.int64)
    place = np.concatenate([(own + start) * slots + slot, theirs])
    owner = np.concatenate([own, np.repeat(np.arange(stop - start), np.diff(places.begin[start : stop + 1]))])
    other = np.concatenate([table.item[own + start, slot], theirs // slots]).astype(np.int32)
    count, slack, product = (each.reshape(-1)[place] for each in (table.both, table.slack, table.product))
    order = np.lexsort((slack, -count.astype(np.int64), other, owner))
    owner, other, count, slack, product = (column[order] for column in (owner, other, count, slack, product))
    new = np.ones(len(owner), bool)
    new[1:] = (owner[1:] != owner[:-1]) | (other[1:] != other[:-1])
    owner, other, count, slack, product = (column[new] for column in (owner, other, count, slack, product))
    return Candidates(np.searchsorted(owner, np.arange(stop - start + 1)), other, count, slack, product)


@njit(cache=True, nogil=True)
def _best(c: Candidates, start: int, firing: Array, total: Array, square: Array, n_tokens: int, kept: int) -> tuple[Array, Array]:
    """For each feature and kind, the entries of the best candidates above chance and their values; the first one wins a tie."""
    n = len(c.begin) - 1
    entry, best = np.full((n, 2, kept), -1, np.int64), np.zeros((n, 2, kept))
    for i in range(n):
        f = start + i
        spread_f = n_tokens * square[f] - total[f] * total[f]
        for e in range(c.begin[i], c.begin[i + 1]):
            g = c.other[e]
            for kind in range(2):
                if kind == 0:
                    value = np.log2(c.both[e] * (n_tokens / firing[f] / firing[g]))
                else:
                    spread = spread_f * (n_tokens * square[g] - total[g] * total[g])
                    value = (n_tokens * c.product[e] - total[f] * total[g]) / np.sqrt(spread) if spread > 0 else 0.0
                if value <= 0 or value <= best[i, kind, kept - 1]:
                    continue
                at = kept - 1
                while at > 0 and value > best[i, kind, at - 1]:
                    entry[i, kind, at], best[i, kind, at] = entry[i, kind, at - 1], best[i, kind, at - 1]
                    at -= 1
                entry[i, kind, at], best[i, kind, at] = e, value
    return entry, best
