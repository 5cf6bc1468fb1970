"""BatchTopK (arXiv 2412.06410): the k * B largest latents of a batch of B tokens reconstruct it.

    f = BatchTopK(ReLU(W_enc (x - b_dec) + b_enc)),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

so that the number of latents varies from token to token. After training, the running mean of the smallest activation kept is the
threshold of a JumpReLU SAE, whose code of a token does not depend on other tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from saekit.sae.code import Code
from trainers.objectives.base import Now
from trainers.objectives.topk import TopK
from trainers.step.parameters import Parameters

# Factor on matched_size. At 1 the first steps go into unlearning; at 0.15 a tenth of 3072 latents stayed dead.
_START = 0.4


class BatchTopK(TopK):
    across_tokens = True

    @property
    def start_size(self) -> float:
        """Below 1, because a token with a large norm gets far more than k latents, each slightly aligned with it. With unit rows
        its reconstruction would be many times too large, and the first part of a run would go into unlearning that.
        """
        return 1.0 if self.kind.transcodes else min(1.0, _START * self.matched_size)

    def encode(self, p: Parameters, x_BD: Tensor, now: Now, **how: Any) -> Code:
        return self.of_batch(p, x_BD, now, self.group, **how)

    def kept(self, p: Parameters, x_BD: Tensor, code: Code, now: Now) -> Tensor | None:
        return self.smallest(p, code, self.group)
