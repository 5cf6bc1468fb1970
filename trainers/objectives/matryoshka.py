"""Matryoshka BatchTopK (arXiv 2503.17547): nested dictionaries. At each of several levels, the first latents alone reconstruct.

    x_hat_g = b_dec + sum_{j < w_g} f_j W_dec[j],   f as in BatchTopK
    L = mean_g mean_b ||x - x_hat_g||^2 / Var(x) + AuxK of the last level

w_g is the end of group g of latents. The paper sums over levels. The mean has the same minimum and keeps the loss in units of
FVU, for which the weight of AuxK is chosen. The error of a level depends on all latents before its end, so the gradient at the
contribution of a latent is the sum of the errors of its own level and of all later levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.loop.data_scaling import DataScaling
from trainers.objectives.base import Now, Outcome
from trainers.objectives.batchtopk import BatchTopK
from trainers.settings.config import TrainConfig
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


class Matryoshka(BatchTopK):
    """The objective of Matryoshka SAEs; formulas in the docstring of the module."""

    splits = False  # the end of a level can lie inside the latents of one process

    def __init__(self, config: TrainConfig, reads: DataScaling, writes: DataScaling) -> None:
        super().__init__(config, reads, writes)
        self.ends_G = group_ends(self.shares(), config.n_latents).to(config.device)

    def shares(self) -> tuple[float, ...]:
        """Sizes of the groups of latents, as fractions of all of them."""
        return self.config.groups

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code = self.encode(p, x_BD, now, backend="torch")
        parts_BGE = code.split(self.ends_G).decode(p.W_dec_FE).view(len(x_BD), len(self.ends_G), -1)
        errors_BGE = parts_BGE.cumsum(1) + (p.b_dec_E - y_BE)[:, None]
        last_BE = errors_BGE[:, -1]
        loss = self.fit(x_BD, last_BE + y_BE, errors_BGE.square().sum(), levels=len(self.ends_G))
        loss = loss + self.auxk.loss(p, x_BD, -last_BE, now.dead)
        if (further := self.further(code.split(self.ends_G))) is not None:
            loss = loss + further
        return Outcome(loss, last_BE.detach().square().sum(), code.detach(), self.kept(p, x_BD, code, now))

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        (x_BD, y_BE), levels = self.sides(p, x_BD, y_BE), len(self.ends_G)
        code = self.encode(p, x_BD, now, **self.config.encoding).split(self.ends_G)
        scale = 2 * self.weight(x_BD) / levels
        error_RE, grads_N, squares = self.decode_gradient(p, code, y_BE, scale)
        further, grads_N = self._with_further(code, grads_N)
        gradient = self.sparse_gradient(p, x_BD, error_RE[::levels])
        gradient.add(code, grads_N, error_RE)
        residual_BE = error_RE[levels - 1 :: levels] / -scale
        loss = scale / 2 * squares + self.auxk.add_gradient(gradient, p, residual_BE, now.dead) + further
        return Outcome(loss, float(residual_BE.square().sum()), code, self.kept(p, x_BD, code, now)), gradient

    def further(self, code: Code) -> Tensor | None:
        """A further term of the loss, differentiable in the values of a code with a row for each level of each token, or None."""
        return None

    def _with_further(self, code: Code, grads_N: Tensor) -> tuple[float, Tensor]:
        """The further term of the loss, and `grads_N` with its gradient at the values of the code."""
        leaf_N = code.values_N.detach().requires_grad_()
        if (further := self.further(code.with_values(leaf_N))) is None:
            return 0.0, grads_N
        return further.item(), grads_N + torch.autograd.grad(further, leaf_N)[0]


def group_ends(groups: tuple[float, ...], n_latents: int) -> Tensor:
    """(G,) int64: the number of latents in each group and all groups before it. Groups that would have no latent are left out."""
    ends_G = (torch.tensor(groups, dtype=torch.float64).cumsum(0) * n_latents).round().long().clamp(1, n_latents)
    ends_G[-1] = n_latents
    return ends_G.unique()
