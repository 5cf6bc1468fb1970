"""Kernels of sparse codes: exact top-k, the gather decoder, and the encoder that never holds a (B, F) matrix.

A code is (values, indices), both (B, K). Functions have up to three implementations: a torch reference, which is differentiable
and runs on any device; a numba version for float32 CPU tensors without a gradient; and a Triton version for GPUs, which is
differentiable once. `backend="auto"` takes the fastest one that can run; `backend` can also name one. All select the
same entries, up to ties and rounding. Rows should be finite. In a row with NaN, values may be NaN, and their columns are then
meaningless.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.sae.kernels import reference

Backend = Literal["auto", "torch", "numba", "triton"]


def topk(pre_BF: Tensor, k: int, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """The k largest entries of every row, in no particular order.

    Args:
        pre_BF: (B, F) pre-activations.
        k: entries to keep, 1 <= k <= F.
        backend: "torch", "numba", "triton", or "auto".

    Returns:
        values (B, k) in the dtype of `pre_BF`, and their columns (B, k) int64, distinct in each row.

    Raises:
        ConfigError: k is out of range, or the forced backend cannot take these tensors.
    """
    _check_k(k, pre_BF.shape[1])
    if _use_numba(backend, pre_BF):
        from saekit.sae.kernels import cpu

        return cpu.topk(pre_BF, k)
    if _use_triton(backend, pre_BF):
        from saekit.sae.kernels import gpu

        return gpu.topk(pre_BF, k)
    return reference.topk(pre_BF, k)


def gather_decode(
    values_BK: Tensor,
    indices_BK: Tensor,
    W_dec_FD: Tensor,
    b_dec_D: Tensor | None = None,
    *,
    start_B1: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`sum_k values[b, k] * W_dec[indices[b, k]] + b_dec`, touching only the rows that fire.

    Args:
        values_BK: (B, K) values of the code; zeros are padding. (N,) for a ragged code.
        indices_BK: (B, K) int64 latents; repeated latents add up. (N,) for a ragged code.
        W_dec_FD: (F, D) decoder, one row per latent.
        b_dec_D: (D,) or None for no bias.
        start_B1: (B + 1,) int64, the starts of the rows of a ragged code: row b has the entries start[b] to start[b + 1]. The
            numba version does not support ragged codes.

    Returns:
        (B, D) reconstruction. Differentiable in values, W_dec and b_dec with the torch and triton backends. "auto" takes one of
        these if an argument requires a gradient.
    """
    tensors = (values_BK, W_dec_FD) if b_dec_D is None else (values_BK, W_dec_FD, b_dec_D)
    if (backend == "numba" or start_B1 is None) and _use_numba(backend, *tensors):
        if start_B1 is not None:
            raise ConfigError("The numba kernels cannot take a ragged code.", 'Use backend="auto" or "torch".')
        from saekit.sae.kernels import cpu

        return cpu.gather_decode(values_BK, indices_BK, W_dec_FD, b_dec_D)
    if _use_triton(backend, *tensors):
        from saekit.sae.kernels import gpu

        return gpu.gather_decode(values_BK, indices_BK, W_dec_FD, b_dec_D, start_B1)
    return reference.gather_decode(values_BK, indices_BK, W_dec_FD, b_dec_D, start_B1)


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
        W_enc_FD: (F, D) encoder, one row per latent. It may be a transposed view of the (D, F) matrix on disk.
        b_enc_F: (F,) or None.
        k: entries to keep, 1 <= k <= F.
        screen: (numba) find candidates with a bfloat16 product and compute the candidates again in float32. Selection and values
            are the same as without it. None: screen if it is expected to be faster on this CPU at these sizes.

    Returns:
        values (B, k) >= 0 and latents (B, k) int64. A row with fewer than k positive pre-activations is padded with value 0
        at distinct but meaningless latents. Differentiable in x, W_enc and b_enc with the torch and triton backends.
    """
    _check_k(k, W_enc_FD.shape[0])
    tensors = (x_BD, W_enc_FD) if b_enc_F is None else (x_BD, W_enc_FD, b_enc_F)
    if _use_numba(backend, *tensors):
        from saekit.sae.kernels import cpu

        return cpu.encode_topk(x_BD, W_enc_FD, b_enc_F, k, screen)
    if _use_triton(backend, *tensors):
        from saekit.sae.kernels import gpu

        return gpu.encode_topk(x_BD, W_enc_FD, b_enc_F, k)
    return reference.encode_topk(x_BD, W_enc_FD, b_enc_F, k)


def encode_abstopk(
    x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """The k entries of `x @ W_enc.T + b_enc` with the largest magnitudes, with their signs (AbsTopK, arXiv 2510.00404).

    The product is computed in chunks of rows, as in :func:`encode_topk`, and there is no screen.

    Args:
        x_BD, W_enc_FD, b_enc_F, k, backend: as in :func:`encode_topk`.

    Returns:
        values (B, k) of either sign and latents (B, k) int64, distinct in each row. Differentiable in x, W_enc and b_enc with the
        torch and triton backends.
    """
    _check_k(k, W_enc_FD.shape[0])
    tensors = (x_BD, W_enc_FD) if b_enc_F is None else (x_BD, W_enc_FD, b_enc_F)
    if _use_numba(backend, *tensors):
        from saekit.sae.kernels import cpu

        return cpu.encode_abstopk(x_BD, W_enc_FD, b_enc_F, k)
    if _use_triton(backend, *tensors):
        from saekit.sae.kernels import gpu

        return gpu.encode_abstopk(x_BD, W_enc_FD, b_enc_F, k)
    return reference.encode_abstopk(x_BD, W_enc_FD, b_enc_F, k)


def pre_activations(
    x_BD: Tensor,
    W_enc_FD: Tensor,
    b_enc_F: Tensor | None,
    indices_BK: Tensor,
    *,
    start_B1: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`x[b] . W_enc[indices[b, k]] + b_enc[indices[b, k]]`: the encoder at given latents, with a gradient at these latents only.

    The latents may be selected by any rule that needs no gradient; this function then trains the encoder at them.

    Args:
        indices_BK: (B, K) int64 latents, or (N,) for a ragged code, whose rows start at `start_B1` as in :func:`gather_decode`.
        backend: "torch", "triton" or "auto". There is no numba version.

    Returns:
        (B, K) or (N,) pre-activations. Differentiable in x, W_enc and b_enc.

    Raises:
        ConfigError: the forced backend cannot take these tensors.
    """
    if backend == "numba":
        raise ConfigError("There is no numba version of pre_activations.", 'Use backend="auto" or "torch".')
    if _use_triton(backend, x_BD, W_enc_FD, *([] if b_enc_F is None else [b_enc_F])):
        from saekit.sae.kernels import gpu

        return gpu.pre_activations(x_BD, W_enc_FD, b_enc_F, indices_BK, start_B1)
    return reference.pre_activations(x_BD, W_enc_FD, b_enc_F, indices_BK, start_B1)


def encode_above(
    x_BD: Tensor,
    W_enc_FD: Tensor,
    b_enc_F: Tensor | None,
    floor_F: Tensor,
    *,
    expected: float = 64.0,
    backend: Backend = "auto",
    screen: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every entry of `x @ W_enc.T + b_enc` above its latent's floor, in chunks of rows: the candidates of any sparse code.

    Args:
        x_BD, W_enc_FD, b_enc_F: as in :func:`encode_topk`.
        floor_F: (F,), or a scalar for all latents.
        expected: approximate number of entries per row; `screen=None` decides by it.
        screen: as in :func:`encode_topk`.

    Returns:
        pre-activations (N,), their latents (N,) int64 in ascending order within a row, and (B + 1,) int64: row b has entries
        start[b] to start[b + 1]. Differentiable in x, W_enc and b_enc with the torch and triton backends.
    """
    tensors = (x_BD, W_enc_FD) if b_enc_F is None else (x_BD, W_enc_FD, b_enc_F)
    if _use_numba(backend, *tensors):
        from saekit.sae.kernels import cpu

        return cpu.encode_above(x_BD, W_enc_FD, b_enc_F, floor_F, expected, screen)
    if _use_triton(backend, *tensors):
        from saekit.sae.kernels import gpu

        return gpu.encode_above(x_BD, W_enc_FD, b_enc_F, floor_F)
    return reference.encode_above(x_BD, W_enc_FD, b_enc_F, floor_F)


def runs_triton(device: str) -> bool:
    """Whether the Triton kernels can run on `device`: on a GPU, or on a CPU if Triton interprets them."""
    if not _has_triton():
        return False
    from saekit.sae.kernels import gpu

    return device.startswith("cuda") or (device.startswith("cpu") and gpu.obstacle(torch.empty(0)) is None)


def _check_k(k: int, n_latents: int) -> None:
    if not 1 <= k <= n_latents:
        raise ConfigError(f"k={k} is impossible with {n_latents} latents.", f"Choose k from 1 to {n_latents}.")


def _use_numba(backend: Backend, *tensors: Tensor) -> bool:
    if backend in ("torch", "triton"):
        return False
    obstacle = next((reason for reason in map(_obstacle, tensors) if reason), None)
    if backend == "numba" and obstacle:
        raise ConfigError(f"The numba kernels cannot take a tensor {obstacle}.", 'Use backend="auto" or "torch".')
    return obstacle is None


def _use_triton(backend: Backend, *tensors: Tensor) -> bool:
    if backend not in ("auto", "triton") or (backend == "auto" and not all(tensor.is_cuda for tensor in tensors)):
        return False
    obstacle: str | None = "without triton, which is not installed"
    if _has_triton():
        from saekit.sae.kernels import gpu

        obstacle = next((reason for reason in map(gpu.obstacle, tensors) if reason), None)
    if backend == "triton" and obstacle:
        raise ConfigError(f"The Triton kernels cannot take a tensor {obstacle}.", 'Use backend="auto" or "torch".')
    return obstacle is None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _obstacle(tensor: Tensor) -> str | None:
    """Why the numba kernels cannot take this tensor, or None."""
    if tensor.device.type != "cpu":
        return f"on {tensor.device}"
    if tensor.dtype != torch.float32:
        return f"of {tensor.dtype}"
    if tensor.requires_grad and torch.is_grad_enabled():
        return "that wants a gradient"
    return None
