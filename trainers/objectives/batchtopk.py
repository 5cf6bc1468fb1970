"""BatchTopK (arXiv 2412.06410): the k * B largest latents of a batch of B tokens reconstruct it.

    f = BatchTopK(ReLU(W_enc (x - b_dec) + b_enc)),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

so that a token may take more latents than another. Afterwards a threshold, the running mean of the smallest activation kept,
makes a token's code independent of its neighbours: the SAE is a JumpReLU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from saekit.sae.code import Code
from trainers.objectives.base import Now
from trainers.objectives.topk import TopK
from trainers.step.parameters import Parameters

_START = 0.4  # of matched_size: at its whole the first steps unlearn; at .15 of it a tenth of 3072 latents stayed dead


class BatchTopK(TopK):
    across_tokens = True

    @property
    def start_size(self) -> float:
        """Short: a token several times as large as others is given far more latents than k, all of which point a little its way.
        With unit rows it would be reconstructed many times too large, and the first part of a run would go into unlearning that.
        """
        return 1.0 if self.kind.transcodes else min(1.0, _START * self.matched_size)

    def encode(self, p: Parameters, x_BD: Tensor, now: Now, **how: Any) -> Code:
        return self.of_batch(p, x_BD, now, self.group, **how)

    def kept(self, p: Parameters, x_BD: Tensor, code: Code, now: Now) -> Tensor | None:
        return self.smallest(p, code, self.group)
