"""Kernels of sparse codes: exact top-k, the gather decoder, and the encoder that never holds a (B, F) matrix.

A code is (values, indices), both (B, K). Every function has a torch reference, which runs anywhere and is differentiable, and
a numba version for contiguous float32 CPU tensors; `backend="auto"` takes the faster one that applies, and either can be forced.
Both give the same selection up to ties and float32 rounding. Rows are expected to be finite: where NaN takes part, values are
NaN and their columns mean nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.sae.kernels import reference

Backend = Literal["auto", "torch", "numba"]


def topk(pre_BF: Tensor, k: int, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """The k largest entries of every row, in no particular order.

    Args:
        pre_BF: (B, F) pre-activations.
        k: entries to keep, 1 <= k <= F.
        backend: "torch", "numba", or "auto".

    Returns:
        values (B, k) in the dtype of `pre_BF`, and their columns (B, k) int64, distinct in each row.

    Raises:
        ConfigError: k is out of range, or the forced backend cannot take these tensors.
    """
    _check_k(k, pre_BF.shape[1])
    if _use_numba(backend, pre_BF):
        from saekit.sae.kernels import cpu

        return cpu.topk(pre_BF, k)
    return reference.topk(pre_BF, k)


def gather_decode(
    values_BK: Tensor, indices_BK: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """`sum_k values[b, k] * W_dec[indices[b, k]] + b_dec`, touching only the rows that fire.

    Args:
        values_BK: (B, K) code values; zeros are padding.
        indices_BK: (B, K) int64 latents; repeated ones add up.
        W_dec_FD: (F, D) decoder, one row per latent.
        b_dec_D: (D,) or None for no bias.

    Returns:
        (B, D) reconstruction. Differentiable in values, W_dec and b_dec on the torch backend, which "auto" takes when a
        gradient is wanted.
    """
    tensors = (values_BK, W_dec_FD) if b_dec_D is None else (values_BK, W_dec_FD, b_dec_D)
    if _use_numba(backend, *tensors):
        from saekit.sae.kernels import cpu

        return cpu.gather_decode(values_BK, indices_BK, W_dec_FD, b_dec_D)
    return reference.gather_decode(values_BK, indices_BK, W_dec_FD, b_dec_D)


def encode_topk(
    x_BD: Tensor,
    W_enc_FD: Tensor,
    b_enc_F: Tensor | None,
    k: int,
    *,
    backend: Backend = "auto",
    screen: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """`top_k(relu(x @ W_enc.T + b_enc))` in chunks of rows, so that memory does not grow with B * F.

    Args:
        x_BD: (B, D) inputs, already centred if the architecture centres.
        W_enc_FD: (F, D) encoder, one row per latent (a transposed view of the (D, F) matrix on disk will do).
        b_enc_F: (F,) or None.
        k: entries to keep, 1 <= k <= F.
        screen: (numba) find candidates by a bfloat16 product and compute those again in float32, which gives the same
            selection and values; None does so where this CPU and these sizes make it faster.

    Returns:
        values (B, k) >= 0 and latents (B, k) int64. A row with fewer than k positive pre-activations is padded with value 0
        at latents that are distinct and meaningless. Differentiable in x, W_enc and b_enc on the torch backend.
    """
    _check_k(k, W_enc_FD.shape[0])
    tensors = (x_BD, W_enc_FD) if b_enc_F is None else (x_BD, W_enc_FD, b_enc_F)
    if _use_numba(backend, *tensors):
        from saekit.sae.kernels import cpu

        return cpu.encode_topk(x_BD, W_enc_FD, b_enc_F, k, screen)
    return reference.encode_topk(x_BD, W_enc_FD, b_enc_F, k)


def _check_k(k: int, n_latents: int) -> None:
    if not 1 <= k <= n_latents:
        raise ConfigError(f"k={k} is impossible with {n_latents} latents.", f"Choose k from 1 to {n_latents}.")


def _use_numba(backend: Backend, *tensors: Tensor) -> bool:
    if backend == "torch":
        return False
    obstacle = next((reason for reason in map(_obstacle, tensors) if reason), None)
    if backend == "numba" and obstacle:
        raise ConfigError(f"The numba kernels cannot take a tensor {obstacle}.", 'Use backend="auto" or "torch".')
    return obstacle is None


def _obstacle(tensor: Tensor) -> str | None:
    """Why the numba kernels cannot take this tensor, or None."""
    if tensor.device.type != "cpu":
        return f"on {tensor.device}"
    if tensor.dtype != torch.float32:
        return f"of {tensor.dtype}"
    if tensor.requires_grad and torch.is_grad_enabled():
        return "that wants a gradient"
    return None
