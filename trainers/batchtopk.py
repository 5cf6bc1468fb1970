"""BatchTopK (arXiv 2412.06410): the k * B largest latents of a batch of B tokens reconstruct it.

    f = BatchTopK(ReLU(W_enc (x - b_dec) + b_enc)),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

so that a token may take more latents than another. Afterwards a threshold, the running mean of the smallest activation kept,
makes a token's code independent of its neighbours: the SAE is a JumpReLU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainers.code import Code
from trainers.objectives import Now
from trainers.parameters import Parameters
from trainers.topk import TopK


class BatchTopK(TopK):
    across_tokens = True

    def encode(self, p: Parameters, x_BD: Tensor, now: Now, **how: Any) -> Code:
        return self.of_batch(p, x_BD, now, self.group, **how)

    def kept(self, p: Parameters, x_BD: Tensor, code: Code, now: Now) -> Tensor | None:
        return self.smallest(p, code, self.group)
