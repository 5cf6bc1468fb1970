"""TopK (arXiv 2406.04093): the k largest latents of a token reconstruct it.

    f = ReLU(TopK(W_enc (x - b_dec) + b_enc)),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

with unit decoder rows. Var(x) is a constant of the run, so the first term is a batch's FVU.
"""

from __future__ import annotations

from torch import Tensor

from saekit.sae.kernels import encode_topk, gather_decode
from trainers import auxk
from trainers.config import TrainConfig
from trainers.objectives import Objective, Outcome
from trainers.parameters import Parameters
from trainers.sparse import SparseGradient, decode_gradient


class TopK(Objective):
    unit_rows = True

    def __init__(self, config: TrainConfig, variance: float) -> None:
        assert config.aux_k is not None
        self.k, self.variance, self.screen = config.l0, variance, config.screen
        self.aux_k, self.aux_coefficient = config.aux_k, config.aux_coefficient

    def loss(self, p: Parameters, x_BD: Tensor, dead: Tensor) -> Outcome:
        centred_BD = x_BD - p.b_dec_D
        values_BK, indices_BK = encode_topk(centred_BD, p.W_enc_FD, p.b_enc_F, self.k, backend="torch")
        x_hat_BD = gather_decode(values_BK, indices_BK, p.W_dec_FD, p.b_dec_D, backend="torch")
        squares = (x_hat_BD - x_BD).square().sum()
        loss = squares / (len(x_BD) * self.variance)
        if self.aux_coefficient and len(dead):
            loss = loss + auxk.loss(p, centred_BD, x_BD - x_hat_BD, dead, self.aux_k, self.aux_coefficient)
        return Outcome(loss, squares.detach(), values_BK.detach(), indices_BK)

    def gradient(self, p: Parameters, x_BD: Tensor, dead: Tensor) -> tuple[Outcome, SparseGradient]:
        centred_BD = x_BD - p.b_dec_D
        values_BK, indices_BK = encode_topk(centred_BD, p.W_enc_FD, p.b_enc_F, self.k, screen=self.screen)
        scale = 2 / (len(x_BD) * self.variance)
        error_BD, grads_BK, squares = decode_gradient(values_BK, indices_BK, p.W_dec_FD, p.b_dec_D, x_BD, scale)
        loss = squares / (len(x_BD) * self.variance)
        gradient = SparseGradient(centred_BD, b_dec_grad_D=error_BD.sum(0), centres=True)
        gradient.add(values_BK, indices_BK, grads_BK, error_BD)
        if self.aux_coefficient and len(dead):
            residual_BD = error_BD / -scale
            aux = (residual_BD, dead, self.aux_k, self.aux_coefficient, self.screen)
            loss += auxk.add_gradient(gradient, p, centred_BD, *aux)
        return Outcome(loss, squares, values_BK, indices_BK), gradient
