"""Covariance whitening of activations (arXiv 2511.13981), and its folding into the weights of an SAE.

    z = (x - mean) M,   M = E diag(lambda + eps)^(-1/2),   Cov(x) = E diag(lambda) E^T

All directions of z have about equal variance, so a dictionary that is trained on z does not spend most of its loss on the few
directions in which x varies most. Both maps are affine. Folded into the weights they leave an ordinary SAE that reads x, with
equal codes: for z = (x - mean_r) M_r as input and z = (y - mean_w) M_w as output,

    W_enc <- M_r W_enc,   W_dec <- W_dec M_w^-1,   b_dec <- b_dec M_w^-1 + mean_w

as in sae-lens (`normalize_activations="covariance_whitening"`). Where b_dec is not subtracted from the input, the biases of the
encoder also take up -mean_r M_r W_enc.

Memory grows with D^2: M, its inverse and, during the estimation, the covariance are (D, D) matrices in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from saekit.sae.activations import Activation

RIDGE = 1e-3
"""eps as a fraction of the mean variance of a direction. Directions without variance would otherwise be scaled without limit."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """An affine change of coordinates, z = (x - mean) @ matrix and x = z @ inverse + mean.

    Attributes:
        mean_D: (D,) float64.
        matrix_DD, inverse_DD: (D, D) float64.
    """

    mean_D: Tensor
    matrix_DD: Tensor
    inverse_DD: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor], ridge: float = RIDGE) -> Whitening:
        """The whitening of activations that come in batches (N, D). Only (D, D) sums are kept, in float64 on the CPU.

        Args:
            batches: at least two rows in all.
            ridge: eps as a fraction of the mean eigenvalue of the covariance.
        """
        n, origin_D, sum_D, outer_DD = 0, torch.zeros(0), torch.zeros(0), torch.zeros(0)
        for batch in batches:
            x_ND = batch.cpu().double()
            if not n:  # sums about a point near the mean keep their digits
                origin_D, sum_D = x_ND.mean(0), x_ND.new_zeros(x_ND.shape[1])
                outer_DD = x_ND.new_zeros(x_ND.shape[1], x_ND.shape[1])
            x_ND = x_ND - origin_D
            n += len(x_ND)
            sum_D += x_ND.sum(0)
            outer_DD.addmm_(x_ND.T, x_ND)
        shift_D = sum_D / n
        outer_DD.addr_(shift_D, shift_D, alpha=-n).div_(max(1, n - 1))
        value_D, vector_DD = torch.linalg.eigh(outer_DD)
        value_D = value_D.clamp_min(0)
        value_D += max(ridge * float(value_D.mean()), torch.finfo(torch.float32).tiny)
        root_D = value_D.sqrt()
        return cls(origin_D + shift_D, (vector_DD / root_D).contiguous(), (vector_DD * root_D).T.contiguous())

    @classmethod
    def empty(cls, width: int) -> Whitening:
        """A place for the tensors of a whitening from a checkpoint."""
        square_DD = torch.zeros(width, width, dtype=torch.float64)
        return cls(torch.zeros(width, dtype=torch.float64), square_DD, square_DD.clone())

    @cached_property
    def reversed(self) -> Whitening:
        """The change of coordinates from z back to x."""
        return Whitening(-self.mean_D @ self.matrix_DD, self.inverse_DD, self.matrix_DD)

    @cached_property
    def key(self) -> str:
        """A digest of the numbers: equal for equal whitenings."""
        digest = hashlib.sha256(self.mean_D.numpy().tobytes())
        digest.update(self.matrix_DD.numpy().data)
        return digest.hexdigest()

    def apply(self, x_ND: Tensor) -> Tensor:
        """z of x, in the dtype and on the device of x."""
        mean_D, matrix_DD = self._as(x_ND.device, x_ND.dtype)
        return (x_ND - mean_D) @ matrix_DD

    def _as(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if (device, dtype) not in self._copies:
            self._copies[device, dtype] = self.mean_D.to(device, dtype), self.matrix_DD.to(device, dtype)
        return self._copies[device, dtype]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}


def fold(t: dict[str, Tensor], activation: Activation, reads: Whitening, writes: Whitening, *, centres: bool) -> None:
    """Fold whitenings into the tensors of an SAE that reads and predicts whitened activations; see the module.

    Args:
        t: tensors under sae-lens's names, in float64; changed in place.
        activation: the activation function of the SAE.
        reads, writes: whitenings of what it reads and of what it predicts.
        centres: whether b_dec is subtracted from the input.
    """
    t["W_enc"] = reads.matrix_DD @ t["W_enc"]
    if not centres:
        t |= activation.shift({name: t[name] for name in activation.parameters}, reads.mean_D @ t["W_enc"])
    t["W_dec"] = t["W_dec"] @ writes.inverse_DD
    t["b_dec"] = t["b_dec"] @ writes.inverse_DD + writes.mean_D
    if "W_skip" in t:
        t["W_skip"] = (reads.matrix_DD @ t["W_skip"].T @ writes.inverse_DD).T
        t["b_dec"] = t["b_dec"] - t["W_skip"] @ reads.mean_D
