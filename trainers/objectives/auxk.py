"""AuxK: dead latents are trained to reconstruct the error of the active ones (arXiv 2406.04093, appendix A.2).

    L_aux = coefficient * sum ||e - e_hat||^2 / sum ||e - mean(e)||^2,   e = stop_gradient(y - y_hat)

where e_hat decodes, without bias, the k_aux largest pre-activations of dead latents. In AbsTopK they are the largest in magnitude
and keep their signs. The gradient of L_aux reaches the encoder
and decoder rows of those latents. If the error has no variance, the loss is 0 rather than NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.step.distributed import ALONE, Group
from trainers.step.encoder import WHOLE, Encoder
from trainers.step.kernels import decode_gradient
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


@dataclass(frozen=True)
class AuxK:
    """The auxiliary loss with its settings.

    Attributes:
        k: number of dead latents used per token.
        coefficient: weight of the loss; 0 turns the loss off.
        encoding: arguments of the encoder in a sparse step; :attr:`trainers.settings.config.TrainConfig.encoding`.
        group: the processes of the run. The largest pre-activations are chosen among the latents of all of them, and the variance
            is that of the rows of all of them.
        encoder: the encoder of the dictionary.
        signed: whether codes may be negative.
    """

    k: int
    coefficient: float
    encoding: Mapping[str, Any]
    group: Group = ALONE
    encoder: Encoder = WHOLE
    signed: bool = False

    def loss(self, p: Parameters, x_BD: Tensor, residual_BE: Tensor, dead: Tensor) -> Tensor | float:
        """The loss, for automatic differentiation.

        Args:
            p: parameters.
            x_BD: input of the encoder.
            residual_BE: y - y_hat. The method detaches it.
            dead: indices of the dead latents.
        """
        if not (k := self._k(dead)):
            return 0.0
        residual_BE = residual_BE.detach()
        code = self._encode(x_BD, p, dead, k, backend="torch")
        weight = self._weight(residual_BE)
        return weight * (self.group.whole(code.decode(p.W_dec_FE)) - residual_BE).square().sum()

    def add_gradient(self, gradient: SparseGradient, p: Parameters, residual_BE: Tensor, dead: Tensor) -> float:
        """Add the gradient of the loss, in closed form, to `gradient`. Returns the loss. Arguments as in :meth:`loss`."""
        if not (k := self._k(dead)):
            return 0.0
        code = self._encode(gradient.x_BD, p, dead, k, **self.encoding)
        weight = float(self._weight(residual_BE))
        how = (2 * weight, self.group, self.encoding["backend"])
        error_BE, grads_N, squares = decode_gradient(code, p.W_dec_FE, None, residual_BE, *how)
        gradient.add(code, grads_N.mul_(code.values_N != 0), error_BE)
        return weight * squares

    def _k(self, dead: Tensor) -> int:
        """Number of dead latents used per token."""
        return min(self.k, self.group.n_latents(len(dead))) if self.coefficient > 0 else 0

    def _encode(self, x_BD: Tensor, p: Parameters, dead: Tensor, k: int, **how: object) -> Code:
        every = k < self.k and not self.signed  # fewer dead latents than k: all that are above 0 are used
        if not len(dead):  # all dead latents are in other processes
            none_B0 = x_BD.new_zeros(len(x_BD), 0)
            return Code.of(none_B0 if every else self.group.largest(none_B0, k), dead.expand(len(x_BD), 0))
        if every:
            return self.encoder.above(p, x_BD, torch.zeros_like(p.b_enc_F[:1]), k, dead, **how)
        values_BK, latents_BK = self.encoder.topk(p, x_BD, k, dead, signed=self.signed, **how)
        return Code.of(self.group.largest(values_BK, k), latents_BK)

    def _weight(self, residual_BE: Tensor) -> Tensor:
        variance = self.group.variance(residual_BE)
        return torch.where(variance > 0, self.coefficient / (len(residual_BE) * variance), 0.0)
