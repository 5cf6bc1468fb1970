"""Adam on a GPU for gradients of sparse codes. It works on blocks of latents, so that no (F, D) gradient is in memory.

The gradient of a latent is a sum over its entries. Every row is updated, also one without entries, so the results are those of
Adam on the dense gradient (arXiv 1412.6980, algorithm 1). Performance on a GPU has not been measured.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekit.errors import ConfigError
from saekit.sae.kernels.gpu import sum_rows

BLOCK_NUMBERS = 1 << 23  # of the gradient of a block of latents; small enough to stay in the L2 cache until it is read


class Constants(NamedTuple):
    """Constants of step t, which counts from 1: `rate` is lr / (1 - beta1^t), and `correction` is 1 / sqrt(1 - beta2^t)."""

    beta1: float
    beta2: float
    rate: float
    correction: float
    eps: float


@torch.no_grad()
def adam_rows(
    W_FD: Tensor,
    mean_FD: Tensor,
    square_FD: Tensor,
    start_F1: Tensor,
    row_N: Tensor,
    weight_N: Tensor,
    table_RD: Tensor,
    constants: Constants,
    *,
    along_F: Tensor | None = None,
    unit_rows: bool = False,
) -> None:
    """One Adam step of all rows, in place, with the gradient `sum_e weight[e] * table[row[e]]` over a latent's entries.

    Args:
        W_FD, mean_FD, square_FD: weights and the state of Adam, contiguous, of any floating dtypes.
        start_F1: (F + 1,) int64: latent l has the entries start[l] to start[l + 1].
        row_N, weight_N: for each entry, a row of the table (int64) and its factor.
        table_RD: the input of the encoder if W is the encoder; the gradient at the reconstruction if W is the decoder.
        along_F: coefficient of each row of W in its own gradient, which is added to the sum over entries.
        unit_rows: keep rows at norm 1: the component of the gradient along a row is removed before the step, and rows are
            normalised after it.

    Raises:
        ConfigError: the weights or a state of Adam are not contiguous, or not of one shape.
    """
    if not all(tensor.is_contiguous() and tensor.shape == W_FD.shape for tensor in (W_FD, mean_FD, square_FD)):
        raise ConfigError(
            "Adam's rows need weights, mean and square of one shape, contiguous.", "Call .contiguous() on them once."
        )
    n_latents, width = W_FD.shape
    n_rows = max(1, BLOCK_NUMBERS // width)
    block_d = triton.next_power_of_2(width)
    for a in range(0, n_latents, n_rows):
        b = min(a + n_rows, n_latents)
        gradient_RD = sum_rows(start_F1[a : b + 1], row_N, weight_N, table_RD, dtype=torch.float32)
        with torch.cuda.device_of(W_FD):
            _step_rows[(b - a,)](
                W_FD[a:b],
                mean_FD[a:b],
                square_FD[a:b],
                gradient_RD,
                None if along_F is None else along_F[a:b],
                width,
                *constants,
                along_F is not None,
                unit_rows,
                block_d,
                num_warps=min(16, max(1, block_d // 512)),
            )


@triton.jit
def _step_rows(
    W_ptr,
    mean_ptr,
    square_ptr,
    gradient_ptr,
    along_ptr,
    width,
    beta1,
    beta2,
    rate,
    correction,
    eps,
    HAS_ALONG: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    column_d = tl.arange(0, BLOCK_D)
    inside_d = column_d < width
    place_d = tl.program_id(0).to(tl.int64) * width + column_d
    weight_d = tl.load(W_ptr + place_d, mask=inside_d, other=0).to(tl.float32)
    gradient_d = tl.load(gradient_ptr + place_d, mask=inside_d, other=0)
    if HAS_ALONG:
        gradient_d += tl.load(along_ptr + tl.program_id(0)) * weight_d
    if UNIT_ROWS:
        gradient_d -= tl.sum(gradient_d * weight_d, 0) * weight_d
    mean_d = tl.load(mean_ptr + place_d, mask=inside_d, other=0).to(tl.float32)
    mean_d = beta1 * mean_d + (1 - beta1) * gradient_d
    square_d = tl.load(square_ptr + place_d, mask=inside_d, other=0).to(tl.float32)
    square_d = beta2 * square_d + (1 - beta2) * gradient_d * gradient_d
    weight_d -= rate * mean_d / (tl.sqrt(square_d) * correction + eps)
    if UNIT_ROWS:
        norm = tl.sqrt(tl.sum(tl.where(inside_d, weight_d * weight_d, 0), 0))
        weight_d /= tl.where(norm > 0, norm, 1.0)
    tl.store(W_ptr + place_d, weight_d.to(W_ptr.dtype.element_ty), mask=inside_d)
    tl.store(mean_ptr + place_d, mean_d.to(mean_ptr.dtype.element_ty), mask=inside_d)
    tl.store(square_ptr + place_d, square_d.to(square_ptr.dtype.element_ty), mask=inside_d)
