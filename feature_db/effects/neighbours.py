"""Features of one dictionary whose decoder directions are alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from feature_db.effects.measured import Partners

TOP = 10
_BLOCK_BYTES = 64 << 20


def nearest(
    vectors: NDArray[np.float32],
    live: NDArray[np.bool_],
    *,
    top: int = TOP,
    device: str | torch.device = "cpu",
    note: Callable[[int], None] = lambda done: None,
) -> Partners:
    """The features with the largest cosine of decoder directions, for every live feature, among the other live features.

    The product of all directions with all is made in blocks of rows, so memory grows with the number of features, not with its
    square.

    Args:
        vectors: (F, d) decoder directions.
        live: (F,) which features fire; dead ones have no partners and are not partners of others.
        top: number of partners.
        device: where the products are computed.
        note: called with the number of features that are done.
    """
    others_FK = np.full((len(vectors), top), -1, np.int64)
    values_FK = np.zeros((len(vectors), top), np.float32)
    numbers = np.flatnonzero(live & (np.linalg.norm(vectors, axis=1) > 0))
    units = torch.nn.functional.normalize(torch.from_numpy(vectors[numbers]).to(device, torch.float32), dim=1)
    count = min(top, len(numbers) - 1)
    rows = max(1, _BLOCK_BYTES // (4 * max(len(numbers), 1)))
    for start in range(0, len(numbers) if count > 0 else 0, rows):
        block = units[start : start + rows]
        cosine = block @ units.T
        cosine[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf  # itself
        best = cosine.topk(count, dim=1)
        at = numbers[start : start + len(block)]
        others_FK[at, :count] = numbers[best.indices.cpu().numpy()]
        values_FK[at, :count] = best.values.cpu().numpy()
        note(start + len(block))
    return Partners(others_FK, values_FK)
