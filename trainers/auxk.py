"""AuxK: dead latents learn to model what the living ones left over (arXiv 2406.04093, appendix A.2).

    L_aux = coefficient * sum ||e - e_hat||^2 / sum ||e - mean(e)||^2,   e = stop_gradient(x - x_hat)

where e_hat decodes, without bias, the k_aux largest pre-activations among dead latents. Its gradient reaches the encoder and the
decoder of those latents. Where the error has no variance the loss is 0 rather than NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saekit.sae.kernels import encode_topk, gather_decode
from trainers.parameters import Parameters
from trainers.sparse import SparseGradient, decode_gradient


def loss(p: Parameters, x_BD: Tensor, residual_BD: Tensor, dead: Tensor, k: int, coefficient: float) -> Tensor:
    """The loss, differentiable. `x_BD` is what the encoder reads; `residual_BD` is detached here."""
    residual_BD = residual_BD.detach()
    values_BK, local_BK = encode_topk(x_BD, p.W_enc_FD[dead], p.b_enc_F[dead], min(k, len(dead)), backend="torch")
    e_hat_BD = gather_decode(values_BK, dead[local_BK], p.W_dec_FD, backend="torch")
    weight = _weight(residual_BD, coefficient)
    return weight * (e_hat_BD - residual_BD).square().sum()


def add_gradient(
    gradient: SparseGradient,
    p: Parameters,
    x_BD: Tensor,
    residual_BD: Tensor,
    dead: Tensor,
    k: int,
    coefficient: float,
    screen: bool | None = None,
) -> float:
    """Add the same loss's gradient to `gradient`, by hand, on the CPU; returns the loss."""
    values_BK, local_BK = encode_topk(x_BD, p.W_enc_FD[dead], p.b_enc_F[dead], min(k, len(dead)), screen=screen)
    indices_BK = dead[local_BK]
    weight = float(_weight(residual_BD, coefficient))
    error_BD, grads_BK, squares = decode_gradient(values_BK, indices_BK, p.W_dec_FD, None, residual_BD, 2 * weight)
    gradient.add(values_BK, indices_BK, grads_BK, error_BD)
    return weight * squares


def _weight(residual_BD: Tensor, coefficient: float) -> Tensor:
    spread = (residual_BD - residual_BD.mean(0)).square().sum()
    return torch.where(spread > 0, coefficient / spread, 0.0)
