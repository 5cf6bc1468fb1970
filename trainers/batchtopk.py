"""BatchTopK (arXiv 2412.06410): the k * B largest latents of a batch of B tokens reconstruct it.

    f = BatchTopK(ReLU(W_enc (x - b_dec) + b_enc)),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

so that a token may take more latents than another. Afterwards a threshold, the running mean of the smallest activation kept,
makes a token's code independent of its neighbours: the SAE is a JumpReLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekit.sae.kernels import encode_above
from trainers.code import Code
from trainers.config import TrainConfig
from trainers.objectives import Now, Outcome
from trainers.parameters import Parameters
from trainers.schedule import latents_per_token
from trainers.statistics import Statistics
from trainers.threshold import RunningThreshold, largest_of_batch
from trainers.topk import TopK


class BatchTopK(TopK):
    def __init__(self, config: TrainConfig, reads: Statistics, writes: Statistics) -> None:
        super().__init__(config, reads, writes)
        self.threshold = RunningThreshold(config.device)
        self.state = self.threshold.state

    def encode(self, p: Parameters, x_BD: Tensor, now: Now, **how: Any) -> Code:
        k = latents_per_token(self.config, now.share)

        def above(x_BD: Tensor, floor: Tensor) -> Code:
            return Code(*encode_above(x_BD, p.W_enc_FD, p.b_enc_F, floor, expected=k, **how))

        return largest_of_batch(above, x_BD, round(k * len(x_BD)), self.threshold.last)

    def observe(self, outcome: Outcome, now: Now) -> None:
        self.threshold.observe(outcome.code)

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        return super().tensors(p) | {"threshold": torch.full_like(p.b_enc_F, self.threshold.value.item())}
