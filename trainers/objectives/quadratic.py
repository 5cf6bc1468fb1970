"""JumpReLU under a quadratic penalty on the distance of L0 from its target (Gemma Scope 2, McDougall et al. 2025).

    f = h * 1[h > theta],   x_hat = W_dec^T f + b_dec,   L0_b = sum_j 1[h_bj > theta_j]
    L = mean_b ||x - x_hat||^2 / Var(x) + lambda 2 / L0* mean_b (L0_b - L0*)^2

with the estimators of :mod:`trainers.objectives.jumprelu`. The distance is that of every token, as in sae-lens
(`jumprelu_sparsity_loss_mode="quadratic"`), so the spread of L0 over tokens is penalised, too. The target L0* falls from
`k_start` to `l0`, and lambda is fixed: the penalty itself pulls L0 to its target from both sides. Tokens with many active latents
have more entries near their thresholds and decide more than others, so where L0 varies between tokens its mean stays below the
target. The derivative by the step of an entry is

    dL/d1[h_bj > theta_j] = lambda 4 / (L0* B) (L0_b - L0*)
"""

from __future__ import annotations

from torch import Tensor

from saekit.sae.code import Code
from trainers.objectives.base import Now
from trainers.objectives.jumprelu import JumpReLU
from trainers.settings.schedule import latents_per_token

_WEIGHT = 0.5  # lambda times the target, for data of variance 1


class QuadraticJumpReLU(JumpReLU):
    """The objective of JumpReLU with a quadratic penalty; formulas in the docstring of the module."""

    def penalty(self, now: Now) -> float:
        if self.config.sparsity is not None:
            return super().penalty(now)
        return _WEIGHT / self.config.l0

    def cost(self, firings: Code, now: Now) -> tuple[Tensor | float, Tensor | float]:
        target, row_N, values_N = latents_per_token(self.config, now.share), firings.row_N, firings.values_N
        values_N = values_N if values_N.is_floating_point() else values_N.float()
        l0_B = self.group.whole(values_N.new_zeros(len(firings)).index_add(0, row_N, values_N))
        excess_B = l0_B - target
        weight = 2 * self.penalty(now) / (target * len(firings))
        return weight * excess_B.square().sum(), 2 * weight * excess_B.detach()[row_N]

    def metrics(self, now: Now) -> dict[str, float]:
        return {"sparsity": self.penalty(now)}
