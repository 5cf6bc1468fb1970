"""JumpReLU (arXiv 2407.14435): a latent fires where its pre-activation exceeds a trained threshold.

    h = W_enc (x - b_dec) + b_enc,   f = h * 1[h > theta],   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + lambda mean_b sum_j 1[h_j > theta_j]

with unit decoder rows and theta = exp(log_threshold) in float32. The derivative of a step function is 0 almost everywhere, so it
gives the threshold no gradient. The straight-through estimators of the paper replace it. With eps the bandwidth and rect(u) = 1
where |u| < 1/2, they are

    df/dtheta = -theta / eps rect((h - theta) / eps),   d1/dtheta = -1 / eps rect((h - theta) / eps),   df/dh = 1[h > theta]

where h > 0, because the pre-activation of the paper is ReLU(h). Latents at or below theta - eps / 2 contribute neither to the
loss nor to the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.objectives.base import Now, Outcome
from trainers.objectives.penalty import Penalised
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


class JumpReLU(Penalised):
    """The objective of JumpReLU SAEs; formulas in the docstring of the module."""

    shrinks = False

    def start(self) -> Parameters:
        p = super().start()
        log_threshold = math.log(max(self.start_cut, self.config.bandwidth))
        return Parameters(p, log_threshold_F=torch.full_like(p.b_enc_F, log_threshold))

    def candidates(self, p: Parameters, x_BD: Tensor, **how: Any) -> tuple[Code, Tensor]:
        """Pre-activations above theta - eps / 2, and (N,) whether each is within eps / 2 of its threshold."""
        theta_F, eps = p.log_threshold_F.detach().exp(), self.config.bandwidth
        floor_F = (theta_F - eps / 2).clamp(min=0)
        code = self.encoder.above(p, x_BD, floor_F, self.expected, **how)
        return code, (code.values_N.detach() - theta_F[code.latents_N]).abs() < eps / 2

    def cost(self, firings: Code, now: Now) -> tuple[Tensor | float, Tensor | float]:
        """The sparsity penalty of a batch, and its derivative by each entry of `firings`.

        Args:
            firings: 1 for every latent that fires, else 0; one row for each token. If the values require a gradient, the penalty
                is differentiable in them.
        """
        per_firing, total = self.penalty(now) / len(firings), self.group.whole(firings.values_N.sum())
        return per_firing * (total if total.requires_grad else float(total)), per_firing

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code, window_N = self.candidates(p, x_BD, backend="torch")
        theta_N, eps = p.log_threshold_F.exp()[code.latents_N], self.config.bandwidth
        fires_N = (code.values_N > theta_N).to(theta_N.dtype)
        nudge_N = window_N * (theta_N - theta_N.detach()) / eps  # value 0; only its derivative matters
        code = code.with_values(code.values_N * fires_N - theta_N.detach() * nudge_N)
        y_hat_BE = self.decode(p, code)
        squares = (y_hat_BE - y_BE).square().sum()
        penalty, _ = self.cost(code.with_values(fires_N - nudge_N), now)
        loss = self.fit(x_BD, y_hat_BE, squares) + penalty + self.auxk.loss(p, x_BD, y_BE - y_hat_BE, now.dead)
        return Outcome(loss, squares.detach(), code.detach())

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code, window_N = self.candidates(p, x_BD, **self.config.encoding)
        theta_F, eps = p.log_threshold_F.exp(), self.config.bandwidth
        theta_N = theta_F[code.latents_N]
        fires_N = code.values_N > theta_N
        penalty, per_firing = self.cost(code.with_values(fires_N), now)
        code, scale = code.with_values(code.values_N * fires_N), 2 * self.weight(x_BD)
        error_BE, grads_N, squares = self.decode_gradient(p, code, y_BE, scale)
        theta_grad_F = code.sums(len(theta_F), window_N * (theta_N * grads_N + per_firing)) / -eps
        gradient = self.sparse_gradient(p, x_BD, error_BE, log_threshold_F=theta_F * theta_grad_F)
        gradient.add(code, grads_N * fires_N, error_BE)
        loss = scale / 2 * squares + float(penalty)
        loss += self.auxk.add_gradient(gradient, p, error_BE / -scale, now.dead)
        return Outcome(loss, squares, code), gradient

    def parameters_of(self, tensors: dict[str, Tensor]) -> Parameters:
        p = super().parameters_of(tensors)
        return Parameters(p, log_threshold_F=tensors.pop("threshold").clamp(1e-6, 1e6).log())

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        return super().tensors(p) | {"threshold": p.log_threshold_F.exp()}
