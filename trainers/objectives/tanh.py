"""JumpReLU under a penalty that saturates (Anthropic, Circuits Updates, January 2025, and Circuit Tracing, 2025).

    f = h * 1[h > theta],   y_hat = W_dec^T f + b_dec
    L = mean_b ||y - y_hat||^2 / Var(y) + lambda mean_b sum_j tanh(c f_j ||W_dec[j]||),   c = 4

The norm of decoder rows is free. The penalty is on f_j ||W_dec[j]||, the norm of what a latent contributes, and hardly grows once
that norm is large. The straight-through estimator of the step also applies to the pre-activation, so that entries near a
threshold train all parameters. With rect as in JumpReLU,

    df/dtheta = -theta / eps rect((h - theta) / eps),   df/dh = 1[h > theta] + theta / eps rect((h - theta) / eps)

The source has a second, small penalty that moves latents that never fire towards their thresholds. Here AuxK revives them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.objectives.base import Now, Outcome
from trainers.objectives.jumprelu import JumpReLU
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient

_STEEP = 4.0  # c, where E||x|| = sqrt(D)


class TanhJumpReLU(JumpReLU):
    """The objective of JumpReLU with a tanh penalty; formulas in the docstring of the module."""

    unit_rows = False

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code, window_N = self.candidates(p, x_BD, backend="torch")
        theta_N, h_N = p.log_threshold_F.exp()[code.latents_N], code.values_N
        above_N = h_N - theta_N
        step_N = window_N * (above_N - above_N.detach()) / self.config.bandwidth  # value 0; only its derivative matters
        code = code.with_values(h_N * (above_N > 0) + theta_N.detach() * step_N)
        y_hat_BE = self.decode(p, code)
        squares = (y_hat_BE - y_BE).square().sum()
        contributed_N = code.values_N * self.sizes_FS(p).sum(1)[code.latents_N]
        penalty = self.penalty(now) / len(x_BD) * self.group.whole(torch.tanh(_STEEP * contributed_N).sum())
        loss = self.fit(x_BD, y_hat_BE, squares) + penalty + self.auxk.loss(p, x_BD, y_BE - y_hat_BE, now.dead)
        return Outcome(loss, squares.detach(), code.detach())

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code, window_N = self.candidates(p, x_BD, **self.config.encoding)
        theta_F, sizes_FS, latents_N = p.log_threshold_F.exp(), self.sizes_FS(p), code.latents_N
        theta_N, sizes_N = theta_F[latents_N], sizes_FS.sum(1)[latents_N]
        fires_N = code.values_N > theta_N
        code = code.with_values(code.values_N * fires_N)
        scale, per_latent = 2 * self.weight(x_BD), self.penalty(now) / len(x_BD)
        error_BE, grads_N, squares = self.decode_gradient(p, code, y_BE, scale)
        cost_N = torch.tanh(_STEEP * code.values_N * sizes_N)
        slope_N = per_latent * _STEEP * (1 - cost_N.square())  # derivative of the penalty by the contribution
        grads_N = grads_N + slope_N * sizes_N
        near_N = window_N * theta_N / self.config.bandwidth
        gradient = self.sparse_gradient(p, x_BD, error_BE, log_threshold_F=-theta_F * code.sums(len(theta_F), near_N * grads_N))
        contributed_F1 = code.sums(len(theta_F), slope_N * code.values_N)[:, None]
        gradient.widths_S, gradient.along_FS = self.widths_S, contributed_F1 / sizes_FS.where(sizes_FS > 0, 1.0)
        gradient.add(code, grads_N * (fires_N + near_N), error_BE)
        loss = scale / 2 * squares + per_latent * float(self.group.whole(cost_N.sum()))
        loss += self.auxk.add_gradient(gradient, p, error_BE / -scale, now.dead)
        return Outcome(loss, squares, code), gradient
