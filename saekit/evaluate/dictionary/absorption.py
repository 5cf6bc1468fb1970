"""Feature absorption: a concept's own latents are silent where a more special latent has taken the concept's direction over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# As SAEBench has them (arXiv 2503.09532).
_COSINE_FULL = 0.025
_COSINE = 0.1
_SHARE = 0.4
_ABSORBERS = 3


@dataclass(frozen=True)
class Absorption:
    """One concept.

    Attributes:
        main: the concept's own latents: one, or several where it is split.
        examples: tokens of the concept that a dense probe knows for such.
        fraction: mean over these of the share of the concept that other latents hold; 0 is none.
        full: share of them on which no main latent fires and one other latent holds the concept.
        absorber: the latent that does so most often; None where none does.
    """

    main: tuple[int, ...]
    examples: int
    fraction: float
    full: float
    absorber: int | None

    @classmethod
    def of(cls, codes_NF: csr_array, cosine_F: np.ndarray, projection_N: np.ndarray, main: tuple[int, ...]) -> Absorption:
        """How far a concept's `main` latents are absorbed by others (Chanin et al., arXiv 2409.14507; SAEBench, 2503.09532).

        Both measures compare projections on the direction d (of length 1) of a dense probe for the concept: that of what each
        latent writes, and that of the activations. With p the latter, m the sum of the former over main latents, and a that over
        the up to 3 largest other latents whose cosine with d is .1 or more:

        - absorption fraction: 0 where `m >= p` or `a < .4 p`, 1 where `m <= 0`, else `a' / (a' + m)` with `a' = min(a, p - m)`.
        - full absorption: no main latent fires, p is not negative, and the latent of the largest projection has a cosine of .025
          or more and at least .4 p.

        SAEBench projects the activations themselves; here p is of what they have beyond the dictionary's output without latents
        (b_dec), because latents write from there. The borders were chosen for models some 2000 wide. By chance alone two
        directions have a cosine of about `1 / sqrt(D)`, so that in much narrower models both measures are too high.

        Args:
            codes_NF: latents at the tokens, each by the length of what it writes.
            cosine_F: of each latent's decoder row with d.
            projection_N: p of each token.
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
    """(N,) sum of each row's largest few."""
    order = np.lexsort((-share_M, row_M))
    row_M, share_M = row_M[order], share_M[order]
    place_M = np.arange(len(row_M)) - np.searchsorted(row_M, row_M)
    kept_M = place_M < _ABSORBERS
    return np.bincount(row_M[kept_M], share_M[kept_M], minlength=N)
