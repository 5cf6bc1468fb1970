"""AuxK: dead latents learn to model what the living ones left over (arXiv 2406.04093, appendix A.2).

    L_aux = coefficient * sum ||e - e_hat||^2 / sum ||e - mean(e)||^2,   e = stop_gradient(y - y_hat)

where e_hat decodes, without bias, the k_aux largest pre-activations among dead latents. Its gradient reaches the encoder and the
decoder of those latents. Where the error has no variance the loss is 0 rather than NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saekit.sae.kernels import encode_topk
from trainers.code import Code
from trainers.parameters import Parameters
from trainers.sparse import SparseGradient, decode_gradient


@dataclass(frozen=True)
class AuxK:
    """The loss with its settings.

    Attributes:
        k: dead latents that take part, per token.
        coefficient: weight; 0 turns it off.
        screen: as in :func:`saekit.sae.kernels.encode_topk`.
    """

    k: int
    coefficient: float
    screen: bool | None = None

    def loss(self, p: Parameters, x_BD: Tensor, residual_BE: Tensor, dead: Tensor) -> Tensor | float:
        """The loss, differentiable. `x_BD` is what the encoder reads; the residual `y - y_hat` is detached here."""
        if not self._active(dead):
            return 0.0
        residual_BE = residual_BE.detach()
        code = self._encode(x_BD, p, dead, backend="torch")
        weight = self._weight(residual_BE)
        return weight * (code.decode(p.W_dec_FE) - residual_BE).square().sum()

    def add_gradient(self, gradient: SparseGradient, p: Parameters, residual_BE: Tensor, dead: Tensor) -> float:
        """Add the same loss's gradient to `gradient`, by hand, on the CPU; returns the loss."""
        if not self._active(dead):
            return 0.0
        code = self._encode(gradient.x_BD, p, dead, screen=self.screen)
        weight = float(self._weight(residual_BE))
        error_BE, grads_N, squares = decode_gradient(code, p.W_dec_FE, None, residual_BE, 2 * weight)
        gradient.add(code, grads_N.mul_(code.values_N > 0), error_BE)
        return weight * squares

    def _active(self, dead: Tensor) -> bool:
        return self.coefficient > 0 and len(dead) > 0

    def _encode(self, x_BD: Tensor, p: Parameters, dead: Tensor, **how: object) -> Code:
        k = min(self.k, len(dead))
        values_BK, local_BK = encode_topk(x_BD, p.W_enc_FD[dead], p.b_enc_F[dead], k, **how)  # type: ignore[arg-type]
        return Code.of(values_BK, dead[local_BK])

    def _weight(self, residual_BE: Tensor) -> Tensor:
        spread = (residual_BE - residual_BE.mean(0)).square().sum()
        return torch.where(spread > 0, self.coefficient / spread, 0.0)
