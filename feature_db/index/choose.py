"""Chooses the examples of a feature that the database keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feature_db.store.examples import TOP, Window

if TYPE_CHECKING:
    from feature_db.index.accumulators import Windows


def choose(top: Windows, sample: Windows, f: int, deciles: NDArray[np.float64], per_decile: int) -> list[Window]:
    """Choose the examples of feature f: the strongest, then some of each tenth of its activations, the strongest tenth first.

    Args:
        top, sample: the windows that the pass kept.
        f: the feature.
        deciles: (9,) inner decile edges of its activations.
        per_decile: number of examples from each tenth. They contain no near-duplicates, and no two come from one document.
    """
    n = int(top.filled[f])
    order = np.lexsort((top.row[f, :n], -top.value[f, :n].astype(np.float64))).tolist()
    chosen = [_window(top, f, s, TOP) for s in order]
    keys = set(top.key[f, :n].tolist())
    documents: dict[int, set[int]] = {}
    tenths: dict[int, list[Window]] = {}
    m = int(sample.filled[f])
    tenth_of = np.searchsorted(deciles, sample.value[f, :m], side="right") + 1
    for s in np.argsort(sample.priority[f, :m], kind="stable").tolist():
        tenth, key, document = int(tenth_of[s]), int(sample.key[f, s]), int(sample.document[f, s])
        if len(tenths.get(tenth, [])) < per_decile and key not in keys and document not in documents.get(tenth, set()):
            tenths.setdefault(tenth, []).append(_window(sample, f, s, tenth))
            documents.setdefault(tenth, set()).add(document)
            keys.add(key)
    for tenth in range(10, 0, -1):
        chosen += tenths.get(tenth, [])
    return chosen


def _window(windows: Windows, f: int, s: int, bucket: int) -> Window:
    n = int(windows.length[f, s])
    return Window(
        bucket,
        int(windows.row[f, s]),
        int(windows.document[f, s]),
        int(windows.position[f, s]),
        int(windows.offset[f, s]),
        windows.tokens[f, s, :n].astype(np.int64),
        windows.values[f, s, :n],
    )
