"""Feature absorption: a more specific latent represents a concept on tokens where the concept's own latents do not fire."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Thresholds of SAEBench (arXiv 2503.09532).
_COSINE_FULL = 0.025
_COSINE = 0.1
_SHARE = 0.4
_ABSORBERS = 3


@dataclass(frozen=True)
class Absorption:
    """One concept.

    Attributes:
        main: the concept's own latents: one, or several if the concept is split.
        examples: number of tokens of the concept that a dense probe recognises.
        fraction: share of the concept that other latents represent, mean over these tokens; 0 means no absorption.
        full: share of these tokens on which no main latent fires and one other latent represents the concept.
        absorber: the latent that most often does so; None if no latent does.
    """

    main: tuple[int, ...]
    examples: int
    fraction: float
    full: float
    absorber: int | None

    @classmethod
    def of(cls, codes_NF: csr_array, cosine_F: np.ndarray, projection_N: np.ndarray, main: tuple[int, ...]) -> Absorption:
        """Measure how far other latents absorb a concept's `main` ones (Chanin et al., arXiv 2409.14507; SAEBench, 2503.09532).

        Both measures compare projections onto d, the unit direction of a dense probe for the concept:

        - p: projection of the activation.
        - m: projection of what the main latents write, summed over them.
        - a: the same, summed over the other latents whose cosine with d is at least .1; at most the 3 largest.

        Absorption fraction: 0 if `m >= p` or `a < .4 p`; 1 if `m <= 0`; else `a' / (a' + m)` with `a' = min(a, p - m)`.

        Full absorption: no main latent fires, p is not negative, and the latent of the largest projection has a cosine of at
        least .025 and a projection of at least `.4 p`.

        SAEBench projects the whole activation. Here p is the projection of the activation minus the dictionary's output without
        latents (b_dec), because latents write relative to that output. The thresholds were chosen for models about 2000 wide.
        Two random directions have a cosine of about `1 / sqrt(D)`, so both measures are too high in much narrower models.

        Args:
            codes_NF: activations of the latents at the tokens, times the norms of their decoder rows.
            cosine_F: cosine of each latent's decoder row with d.
            projection_N: p of each token.
            main: the concept's own latents.
        """
        N = len(projection_N)
        row_M, latent_M = codes_NF.tocoo().coords
        share_M = codes_NF.tocoo().data * cosine_F[latent_M]
        main_M = np.isin(latent_M, main)
        fires_N = np.bincount(row_M[main_M], minlength=N) > 0
        m_N = np.bincount(row_M[main_M], share_M[main_M], minlength=N)
        absorbs_M = ~main_M & (cosine_F[latent_M] >= _COSINE) & (share_M > 0)
        a_N = _largest(row_M[absorbs_M], share_M[absorbs_M], N)
        taken_N = np.clip(np.minimum(a_N, projection_N - m_N), 0, None)
        absorbed_N = (m_N < projection_N) & (projection_N > 0) & (a_N >= _SHARE * projection_N)
        held_N = np.where(m_N <= 0, 1.0, taken_N / np.where(m_N > 0, taken_N + m_N, 1.0))
        order = np.lexsort((-share_M, row_M))
        first_M = np.append(True, row_M[order][1:] != row_M[order][:-1])[: len(order)]
        row_n, latent_n, share_n = (each[order][first_M] for each in (row_M, latent_M, share_M))
        full_n = ~fires_N[row_n] & (projection_N[row_n] >= 0) & (cosine_F[latent_n] >= _COSINE_FULL)
        full_n &= share_n >= _SHARE * projection_N[row_n]
        absorbers = Counter(latent_n[full_n].tolist())
        return cls(
            tuple(main),
            N,
            float(np.where(absorbed_N, held_N, 0.0).mean()) if N else float("nan"),
            float(full_n.sum() / N) if N else float("nan"),
            absorbers.most_common(1)[0][0] if absorbers else None,
        )


def _largest(row_M: np.ndarray, share_M: np.ndarray, N: int) -> np.ndarray:
    """(N,) sum of the largest `_ABSORBERS` entries of each row."""
    order = np.lexsort((-share_M, row_M))
    row_M, share_M = row_M[order], share_M[order]
    place_M = np.arange(len(row_M)) - np.searchsorted(row_M, row_M)
    kept_M = place_M < _ABSORBERS
    return np.bincount(row_M[kept_M], share_M[kept_M], minlength=N)
