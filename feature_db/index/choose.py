"""Chooses the examples of features that the database keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_db.store.examples import TOP, Columns

if TYPE_CHECKING:
    from feature_db.index.accumulators import Windows

Array = np.ndarray[Any, Any]


def choose(top: Windows, sample: Windows, block: slice, deciles: NDArray[np.float64], per_decile: int) -> Iterator[Columns]:
    """Choose the examples of features: the strongest, then some of each tenth of its activations, the strongest tenth first.

    Args:
        top, sample: the windows that the pass kept.
        block: the features.
        deciles: (features, 9) inner decile edges of their activations.
        per_decile: number of examples from each tenth. They contain no near-duplicates, and no two come from one document.
    """
    slots, n_top, n_all, buckets = _chosen(top, sample, block.start, block.stop, deciles, per_decile)
    places = np.arange(top.tokens.shape[2])
    for i, f in enumerate(range(block.start, block.stop)):
        strong, others = slots[i, : n_top[i]], slots[i, n_top[i] : n_all[i]]
        column = {
            name: np.concatenate([getattr(top, name)[f, strong], getattr(sample, name)[f, others]])
            for name in ("row", "document", "position", "offset", "length", "tokens", "values")
        }
        inside = places < column["length"][:, None]
        yield Columns(
            bucket=buckets[i, : n_all[i]],
            row=column["row"],
            document=column["document"],
            position=column["position"],
            peak=column["offset"],
            length=column["length"],
            tokens=column["tokens"][inside],
            values=column["values"][inside],
        )


@njit(cache=True, nogil=True)
def _chosen(
    top: Windows, sample: Windows, start: int, stop: int, deciles: Array, per_decile: int
) -> tuple[Array, Array, Array, Array]:
    """Slots of the examples of each feature: first those in `top`, then those in `sample`; both numbers, and the buckets."""
    S = top.key.shape[1]
    most = S + 10 * per_decile
    slots, buckets = np.zeros((stop - start, most), np.int64), np.full((stop - start, most), TOP, np.int64)
    n_top, n_all = np.zeros(stop - start, np.int64), np.zeros(stop - start, np.int64)
    of_tenth, taken = np.empty((11, per_decile), np.int64), np.zeros(11, np.int64)
    keys = np.empty(most, np.int64)
    for i in range(stop - start):
        f = start + i
        n = top.filled[f]
        for s in range(n):  # the strongest first, then the earlier row
            at = s
            while at > 0 and (
                top.value[f, s] > top.value[f, slots[i, at - 1]]
                or (top.value[f, s] == top.value[f, slots[i, at - 1]] and top.row[f, s] < top.row[f, slots[i, at - 1]])
            ):
                slots[i, at] = slots[i, at - 1]
                at -= 1
            slots[i, at] = s
            keys[s] = top.key[f, s]
        n_keys = n
        taken[:] = 0
        for s in np.argsort(sample.priority[f, : sample.filled[f]], kind="mergesort"):
            tenth = 1
            for edge in deciles[i]:
                tenth += edge <= sample.value[f, s]
            free = taken[tenth] < per_decile
            for k in range(n_keys):
                free = free and keys[k] != sample.key[f, s]
            for k in range(taken[tenth]):
                free = free and sample.document[f, of_tenth[tenth, k]] != sample.document[f, s]
            if free:
                of_tenth[tenth, taken[tenth]] = s
                taken[tenth] += 1
                keys[n_keys] = sample.key[f, s]
                n_keys += 1
        at = n
        for tenth in range(10, 0, -1):
            for k in range(taken[tenth]):
                slots[i, at], buckets[i, at] = of_tenth[tenth, k], tenth
                at += 1
        n_top[i], n_all[i] = n, at
    return slots, n_top, n_all, buckets
