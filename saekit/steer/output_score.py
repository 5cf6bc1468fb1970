"""The output score: how surely an amplified feature makes the tokens that it promotes."""

from __future__ import annotations

import torch
from torch import Tensor


def output_scores(logp_BV: Tensor, promoted_BK: Tensor) -> Tensor:
    """The output score on each of B prompts with a feature amplified, (B,), 0 to 1; NaN where no promoted token is known.

    S_out = (1 - r / V) p, where p is the largest probability among the tokens M that the feature promotes most, and r the number
    of tokens that are likelier than that one: the smallest rank among M, counted from 0 (Arad et al. 2025, arXiv 2505.20063).

    Args:
        logp_BV: log-probabilities of the next token.
        promoted_BK: ids of the promoted tokens of the feature that is amplified on each prompt; -1 for none.
    """
    known_BK = promoted_BK >= 0
    of_promoted_BK = logp_BV.gather(1, promoted_BK.clamp_min(0)).masked_fill(~known_BK, -torch.inf)
    best_B = of_promoted_BK.amax(1)
    rank_B = (logp_BV > best_B[:, None]).sum(1)
    score_B = (1 - rank_B / logp_BV.shape[1]) * best_B.exp()
    return score_B.masked_fill(~known_BK.any(1), torch.nan)
