"""The standard SAE: ReLU latents under an L1 penalty (Anthropic, Update on how we train SAEs, April 2024).

    f = ReLU(W_enc (x - b_dec) + b_enc),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + lambda mean_b sum_j f_j ||W_dec[j]|| / sqrt(Var(x))

The norm of decoder rows is free. The penalty is on f_j ||W_dec[j]||, the norm of what a latent contributes, so moving magnitude
from the code to the decoder does not lower the loss. (The source has ||x - x_hat||^2 with ||x|| = sqrt(D) and a lambda of about
5, which corresponds to 5 / sqrt(D) here.) A finished SAE is rescaled to decoder rows of norm 1. In a crosscoder, ||W_dec[j]|| is
the sum of the norms at all sites (Anthropic, Sparse Crosscoders, 2024), so a latent that writes nothing at a site is penalised
less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.objectives.base import Now, Outcome
from trainers.objectives.penalty import Penalised
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


class Standard(Penalised):
    """The objective of standard SAEs; formulas in the docstring of the module."""

    unit_rows = False

    def start(self) -> Parameters:
        p = super().start()
        return Parameters(p, b_enc_F=p.b_enc_F - self.start_cut)

    @property
    def start_size(self) -> float:
        # The cut is subtracted from the code, and E[(z - cut) z; z > cut] is the share of latents above the cut.
        n_firing = self.config.n_latents * self.start_share
        return super().start_size if self.kind.transcodes else len(self.reads.centre_D) / n_firing

    def encode(self, p: Parameters, x_BD: Tensor, **how: Any) -> Code:
        zero = torch.zeros_like(p.b_enc_F[:1])
        return self.encoder.above(p, x_BD, zero, self.expected, **how)

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code = self.encode(p, x_BD, backend="torch")
        y_hat_BE = self.decode(p, code)
        squares = (y_hat_BE - y_BE).square().sum()
        sizes_F = self.sizes_FS(p).sum(1)
        penalty = self.per_size(x_BD, now) * self.group.whole((code.values_N * sizes_F[code.latents_N]).sum())
        loss = self.fit(x_BD, y_hat_BE, squares) + penalty + self.auxk.loss(self.lifted(p), x_BD, y_BE - y_hat_BE, now.dead)
        return Outcome(loss, squares.detach(), code.detach())

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code = self.encode(p, x_BD, **self.config.encoding)
        scale, per_size, sizes_FS = 2 * self.weight(x_BD), self.per_size(x_BD, now), self.sizes_FS(p)
        sizes_F = sizes_FS.sum(1)
        error_BE, grads_N, squares = self.decode_gradient(p, code, y_BE, scale)
        totals_F = code.sums(len(sizes_F), code.values_N)
        # d ||w|| / dw = w / ||w||, and 0 at 0.
        gradient = self.sparse_gradient(p, x_BD, error_BE)
        gradient.widths_S, gradient.along_FS = self.widths_S, per_size * totals_F[:, None] / sizes_FS.where(sizes_FS > 0, 1.0)
        gradient.add(code, grads_N + per_size * sizes_F[code.latents_N], error_BE)
        loss = scale / 2 * squares + per_size * float(self.group.whole(totals_F @ sizes_F))
        loss += self.auxk.add_gradient(gradient, self.lifted(p), error_BE / -scale, now.dead)
        return Outcome(loss, squares, code), gradient

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        return super().tensors(self.of_unit_size(p))

    def per_size(self, x_BD: Tensor, now: Now) -> float:
        """Weight of the penalty for each unit of f_j ||W_dec[j]|| on one token of the batch."""
        return self.penalty(now) / (len(x_BD) * self.writes.variance**0.5)
