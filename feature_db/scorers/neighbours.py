"""The features that are most easily confused with a feature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from feature_db.meaning.embedders import unit
from feature_db.scorers.heldout import Codes

OF_EACH = 10
"""Features that fire together with it most, and features with the most similar decoder directions."""
_ROWS = 2000
_CHUNK = 256


class Neighbours:
    """A function from a feature to its neighbours.

    Args:
        codes: activations on text. Features fire together as far as the cosine of their firing says:
            |A and B| / sqrt(|A| |B|).
        vectors: (F, d_out) decoder directions.
    """

    def __init__(self, codes: Codes, vectors: NDArray[np.float32]) -> None:
        self._codes, self._vectors = codes, vectors
        self._count_F = np.diff(codes.start_F)
        self._first, self._similar = -1, np.zeros((0, 0), np.int64)

    def __call__(self, feature: int) -> NDArray[np.int64]:
        """Numbers of the neighbours, without the feature itself."""
        found = np.union1d(self.together(feature), self.similar(feature))
        return found[found != feature]

    def together(self, feature: int) -> NDArray[np.int64]:
        """Features that fire on the same tokens."""
        rows = self._codes.rows(feature)
        rows = rows[:: max(len(rows) // _ROWS, 1)]
        start, feature_E = self._codes.by_row
        lengths = start[rows + 1] - start[rows]
        entries = np.repeat(start[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        both_F = np.bincount(feature_E[entries], minlength=len(self._count_F))
        both_F[feature] = 0
        cosine_F = both_F / np.sqrt(np.maximum(self._count_F, 1))
        best = np.argpartition(-cosine_F, min(OF_EACH, len(cosine_F) - 1))[:OF_EACH]
        return best[cosine_F[best] > 0]

    def similar(self, feature: int) -> NDArray[np.int64]:
        """Features with similar decoder directions that fire at all."""
        first = feature // _CHUNK * _CHUNK
        if first != self._first:
            all_FD = self._unit
            cosine = all_FD[first : first + _CHUNK] @ all_FD.T
            cosine[:, self._count_F == 0] = -1
            cosine[np.arange(len(cosine)), first + np.arange(len(cosine))] = -1
            n = min(OF_EACH, cosine.shape[1] - 1)
            self._first, self._similar = first, np.argpartition(-cosine, n, axis=1)[:, :OF_EACH]
        return self._similar[feature - first]

    @property
    def _unit(self) -> NDArray[np.float32]:
        if not hasattr(self, "_unit_FD"):
            self._unit_FD = unit(np.asarray(self._vectors, np.float32))
        return self._unit_FD
