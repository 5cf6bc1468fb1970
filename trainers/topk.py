"""TopK (arXiv 2406.04093): the k largest latents of a token reconstruct it.

    f = ReLU(TopK(W_enc (x - b_dec) + b_enc)),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

with unit decoder rows. Var(x) is a constant of the run, so the first term is a batch's FVU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from saekit.sae.kernels import encode_topk
from trainers.code import Code
from trainers.objectives import Now, Objective, Outcome
from trainers.parameters import Parameters
from trainers.schedule import latents_per_token
from trainers.sparse import SparseGradient, decode_gradient


class TopK(Objective):
    def encode(self, p: Parameters, x_BD: Tensor, now: Now, **how: Any) -> Code:
        """The code of a batch, of which all that is above 0 fires."""
        k = round(latents_per_token(self.config, now.share))
        return Code.of(*encode_topk(x_BD, p.W_enc_FD, p.b_enc_F, k, **how))

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        x_BD = x_BD - p.b_dec_E
        code = self.encode(p, x_BD, now, backend="torch")
        y_hat_BE = code.decode(p.W_dec_FE, p.b_dec_E)
        squares = (y_hat_BE - y_BE).square().sum()
        loss = self.weight(x_BD) * squares + self.auxk.loss(p, x_BD, y_BE - y_hat_BE, now.dead)
        return Outcome(loss, squares.detach(), code.detach())

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        x_BD = x_BD - p.b_dec_E
        code = self.encode(p, x_BD, now, screen=self.config.screen)
        scale = 2 * self.weight(x_BD)
        error_BE, grads_N, squares = decode_gradient(code, p.W_dec_FE, p.b_dec_E, y_BE, scale)
        gradient = SparseGradient(x_BD, {"b_dec_E": error_BE.sum(0)}, centres=True)
        gradient.add(code, grads_N.mul_(code.values_N > 0), error_BE)
        loss = scale / 2 * squares + self.auxk.add_gradient(gradient, p, error_BE / -scale, now.dead)
        return Outcome(loss, squares, code), gradient
