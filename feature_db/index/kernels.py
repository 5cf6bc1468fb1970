"""Compiled loops of the pass, over one block of tokens at a time.

All loops visit rows in stream order, so the result does not depend on how the stream is cut into blocks. Shapes: N rows of a
block, K code entries per row, F features, S slots, W tokens of a window. An entry fires if its value is positive and its row is
counted. Arguments are named tuples of arrays; their definitions describe them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from feature_db.labels.token_classes import BIT, LANGUAGE_SHIFT
from feature_db.store.statistics import BINS, LOWEST
from saekit.hashing import FIRST, GOLDEN, SECOND

if TYPE_CHECKING:
    from feature_db.index.accumulators import Block, Hitters, Moments, Scratch, Windows

Array = np.ndarray[Any, Any]
# A bin is the exponent and the first three bits of the mantissa of a positive float32, shifted.
_BIN_OFFSET = (127 + LOWEST) * 8
_N_LOOKS = len(BIT)
_LOOKS = (1 << _N_LOOKS) - 1


@njit(cache=True, nogil=True)
def _mix(x: np.uint64) -> np.uint64:
    """SplitMix64 of one number, compiled; equals :func:`saekit.hashing.splitmix64`."""
    x = x + np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def span_hashes(tokens: Array, joined: Array, counted: Array, longest: int) -> tuple[Array, Array, Array]:
    """Runs of counted tokens: where each starts, a hash of its tokens, and its length. A run is cut at `longest` tokens."""
    n = len(tokens)
    starts = np.empty(n, np.int64)
    hashes = np.empty(n, np.int64)
    lengths = np.empty(n, np.int64)
    spans = 0
    for i in range(n):
        if not counted[i]:
            continue
        if joined[i] and lengths[spans - 1] < longest:
            lengths[spans - 1] += 1
            state = np.uint64(hashes[spans - 1])
        else:
            starts[spans], lengths[spans] = i, 1
            spans += 1
            state = np.uint64(0)
        hashes[spans - 1] = np.int64(_mix(state ^ np.uint64(tokens[i] + 1)))
    return starts[:spans], hashes[:spans], lengths[:spans]


@njit(cache=True, nogil=True)
def add_moments(block: Block, classes: Array, m: Moments) -> int:
    """Add counts, sums, maxima, histogram, and sums by token class. Returns the first row with a non-finite value, or -1."""
    bits = block.values.view(np.int32)
    for i in range(block.values.shape[0]):
        if not block.counted[i]:
            continue
        for j in range(block.values.shape[1]):
            v = block.values[i, j]
            if not np.isfinite(v):
                return i
            if v <= 0:
                continue
            f = block.indices[i, j]
            m.firing[f] += 1
            m.total[f] += v
            m.square[f] += np.float64(v) * v
            m.largest[f] = max(m.largest[f], v)
            m.histogram[f, min(max((bits[i, j] >> 20) - _BIN_OFFSET, 0), BINS - 1)] += 1
            rest, c = classes[i] & _LOOKS, 0
            while rest:
                if rest & 1:
                    m.classes[f, c] += 1
                    m.class_total[f, c] += v
                rest, c = rest >> 1, c + 1
            language = classes[i] >> LANGUAGE_SHIFT
            if language:
                m.classes[f, _N_LOOKS + language - 1] += 1
                m.class_total[f, _N_LOOKS + language - 1] += v
    return -1


@njit(cache=True, nogil=True)
def add_hits(block: Block, item_N: Array, instance_N: Array, h: Hitters) -> None:
    """Find the items that hold most of each feature's activation, by weighted Space-Saving (Metwally et al. 2005).

    `item_N` is the item of each row, or -1; `instance_N` numbers its occurrences. An item with more than 1/S of a feature's
    activation is always kept, and `slack` is at most that much.
    """
    n_slots = h.item.shape[1]
    for i in range(block.values.shape[0]):
        x = item_N[i]
        if x < 0 or not block.counted[i]:
            continue
        for j in range(block.values.shape[1]):
            v = block.values[i, j]
            if v <= 0:
                continue
            f = block.indices[i, j]
            slot = 0
            while slot < n_slots and h.item[f, slot] >= 0 and h.item[f, slot] != x:
                slot += 1
            if slot == n_slots:
                slot = 0
                for s in range(1, n_slots):
                    if h.mass[f, s] + h.slack[f, s] < h.mass[f, slot] + h.slack[f, slot]:
                        slot = s
                h.slack[f, slot] += h.mass[f, slot]
                h.mass[f, slot], h.peak[f, slot], h.tokens[f, slot], h.hits[f, slot] = 0, 0, 0, 0
            if h.item[f, slot] != x:
                h.item[f, slot], h.last[f, slot] = x, -1
            h.mass[f, slot] += v
            h.peak[f, slot] = max(h.peak[f, slot], v)
            h.tokens[f, slot] += 1
            if h.last[f, slot] != instance_N[i]:
                h.hits[f, slot] += 1
                h.last[f, slot] = instance_N[i]


@njit(cache=True, nogil=True)
def _neighbourhood(i: int, first: int, end: int, radius: int, canonical: Array) -> np.int64:
    """Hash of the tokens around row i, up to case, spaces and digits: equal for near-duplicates."""
    lo, hi = max(first, i - radius), min(end, i + radius + 1)
    state = _mix(np.uint64(i - lo))
    for r in range(lo, hi):
        state = _mix(state ^ np.uint64(canonical[r]))
    return np.int64(state)


@njit(cache=True, nogil=True)
def _keep(block: Block, f: int, i: int, v: float, first: int, end: int, before: int, w: Windows, slot: int) -> None:
    """Store row i of feature f in a slot, with the window around it, clipped to its piece (rows first to end)."""
    lo, hi = max(first, i - before), min(end, i - before + w.tokens.shape[2])
    w.value[f, slot], w.row[f, slot] = v, block.row + i
    w.document[f, slot], w.position[f, slot] = block.document[i], block.position[i]
    w.offset[f, slot], w.length[f, slot] = i - lo, hi - lo
    for r in range(lo, hi):
        w.tokens[f, slot, r - lo] = block.tokens[r]
        w.values[f, slot, r - lo] = 0
        if block.counted[r]:
            for j in range(block.values.shape[1]):
                if block.indices[r, j] == f and block.values[r, j] > 0:
                    w.values[f, slot, r - lo] = block.values[r, j]


@njit(cache=True, nogil=True)
def add_top(block: Block, pieces: Array, before: int, radius: int, scratch: Scratch, pending: Windows, w: Windows) -> None:
    """Keep each feature's strongest examples: at most one per document, and the strongest of near-duplicates.

    The result is exact: the S largest peaks among the best of each neighbourhood, of the peaks of documents. The earlier row wins
    a tie. A document may go on in the next piece or block, so its peak waits in `pending` until the feature fires in another.
    """
    for p in range(len(pieces) - 1):
        first, end = pieces[p], pieces[p + 1]
        n_touched = 0
        for i in range(first, end):
            if not block.counted[i]:
                continue
            for j in range(block.values.shape[1]):
                v = block.values[i, j]
                if v <= 0:
                    continue
                f = block.indices[i, j]
                if scratch.row[f] < 0:
                    scratch.touched[n_touched] = f
                    n_touched += 1
                    scratch.best[f], scratch.row[f] = v, i
                elif v > scratch.best[f]:
                    scratch.best[f], scratch.row[f] = v, i
        for t in range(n_touched):
            f = scratch.touched[t]
            i, v = scratch.row[f], scratch.best[f]
            scratch.row[f] = -1
            if pending.filled[f] and pending.document[f, 0] != block.document[i]:
                _enter(f, pending, w)
            least = pending.value[f, 0] if pending.filled[f] else (w.value[f, w.worst[f]] if w.filled[f] == w.key.shape[1] else 0)
            if v > least:
                pending.filled[f] = 1
                pending.key[f, 0] = _neighbourhood(i, first, end, radius, block.canonical)
                _keep(block, f, i, v, first, end, before, pending, 0)


@njit(cache=True, nogil=True)
def end_top(pending: Windows, w: Windows) -> None:
    """Keep the peaks of the last documents."""
    for f in range(len(pending.filled)):
        if pending.filled[f]:
            _enter(f, pending, w)


@njit(cache=True, nogil=True)
def _enter(f: int, pending: Windows, w: Windows) -> None:
    """Move the pending example of feature f to its strongest ones, if it is one of them."""
    pending.filled[f] = 0
    n, n_slots, v = w.filled[f], w.key.shape[1], pending.value[f, 0]
    if n == n_slots and v <= w.value[f, w.worst[f]]:
        return
    slot = 0
    while slot < n and w.key[f, slot] != pending.key[f, 0]:
        slot += 1
    if slot < n and v <= w.value[f, slot]:
        return
    if slot == n_slots:
        slot = w.worst[f]
    w.filled[f] = max(n, slot + 1)
    w.key[f, slot], w.value[f, slot], w.row[f, slot] = pending.key[f, 0], v, pending.row[f, 0]
    w.document[f, slot], w.position[f, slot] = pending.document[f, 0], pending.position[f, 0]
    w.offset[f, slot], w.length[f, slot] = pending.offset[f, 0], pending.length[f, 0]
    w.tokens[f, slot], w.values[f, slot] = pending.tokens[f, 0], pending.values[f, 0]
    worst = 0
    for s in range(1, w.filled[f]):
        less = w.value[f, s] < w.value[f, worst]
        if less or (w.value[f, s] == w.value[f, worst] and w.row[f, s] > w.row[f, worst]):
            worst = s
    w.worst[f] = worst


@njit(cache=True, nogil=True)
def add_sample(block: Block, first_feature: int, pieces: Array, before: int, radius: int, w: Windows) -> None:
    """Keep a uniform sample of each feature's firing tokens, without replacement: the tokens with the S smallest hashes.

    The hash is of the row and of the feature's number in the dictionary: the features of the block begin at `first_feature`.
    """
    n_slots = w.key.shape[1]
    for p in range(len(pieces) - 1):
        first, end = pieces[p], pieces[p + 1]
        for i in range(first, end):
            if not block.counted[i]:
                continue
            row_hash = _mix(np.uint64(block.row + i))
            for j in range(block.values.shape[1]):
                v = block.values[i, j]
                if v <= 0:
                    continue
                f = block.indices[i, j]
                priority = _mix(row_hash ^ np.uint64(first_feature + f))
                n = w.filled[f]
                if n == n_slots and priority >= w.priority[f, w.worst[f]]:
                    continue
                slot = n if n < n_slots else w.worst[f]
                w.filled[f] = max(n, slot + 1)
                w.priority[f, slot] = priority
                w.key[f, slot] = _neighbourhood(i, first, end, radius, block.canonical)
                _keep(block, f, i, v, first, end, before, w, slot)
                worst = 0
                for s in range(1, w.filled[f]):
                    if w.priority[f, s] > w.priority[f, worst]:
                        worst = s
                w.worst[f] = worst
