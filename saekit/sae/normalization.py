"""Normalisations of the input that are computed for every token, as sae-lens defines them."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize(x_ND: Tensor, how: str) -> tuple[Tensor, Tensor, Tensor]:
    """A row's normalised form, and the shift and scale (N, 1) that bring a reconstruction back, all as sae-lens has them."""
    if how == "layer_norm":
        shift_N1 = x_ND.mean(-1, keepdim=True)
        scale_N1 = (x_ND - shift_N1).norm(dim=-1, keepdim=True) / (x_ND.shape[-1] - 1) ** 0.5
        return (x_ND - shift_N1) / (scale_N1 + 1e-5), shift_N1, scale_N1
    # constant_norm_rescale: every row gets norm sqrt(D). The clamp keeps an all-zero row zero where sae-lens makes it NaN.
    norm_N1 = x_ND.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x_ND.dtype).tiny)
    scale_N1 = norm_N1 / x_ND.shape[-1] ** 0.5
    return x_ND / scale_N1, torch.zeros_like(scale_N1), scale_N1
