"""Sparse codes on the CPU in float32, with numba: the wrappers around :mod:`saekit.sae.kernels.rows`.

The encoder's product can run in bfloat16 as a *screen*: twice as fast where the CPU has the instructions, and with a proven
bound on its error it leaves a few dozen latents a row that can be among the k largest. Those are computed again in float32, so
selection and values are those of a float32 encoder.
"""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
import torch
from torch import Tensor

from saekit.sae.kernels import rows
from saekit.sae.kernels.threads import run_blocks

_scratch = threading.local()


def topk(pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n_rows, n_columns = pre_BF.shape
    values_BK, indices_BK = torch.empty(n_rows, k), torch.empty(n_rows, k, dtype=torch.int64)
    pre, values, indices = pre_BF.detach().contiguous().numpy(), values_BK.numpy(), indices_BK.numpy()
    no_bias, n_groups = np.zeros(n_columns, np.float32), _n_groups(n_columns, k)

    def select(a: int, b: int) -> None:
        rows.topk_rows(pre[a:b], no_bias, k, n_groups, values[a:b], indices[a:b])

    run_blocks(select, n_rows, _block(n_columns))
    return values_BK, indices_BK


def gather_decode(values_BK: Tensor, indices_BK: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor | None) -> Tensor:
    out_BD = torch.empty(values_BK.shape[0], W_dec_FD.shape[1])
    W, out = W_dec_FD.detach().contiguous().numpy(), out_BD.numpy()
    values, indices = values_BK.detach().contiguous().numpy(), indices_BK.contiguous().numpy()
    bias = np.zeros(W.shape[1], np.float32) if b_dec_D is None else b_dec_D.detach().contiguous().numpy()
    run_blocks(lambda a, b: rows.decode_rows(values[a:b], indices[a:b], W, bias, out[a:b]), out.shape[0], 256)
    return out_BD


def encode_topk(x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int, screen: bool | None) -> tuple[Tensor, Tensor]:
    n_rows, n_latents = len(x_BD), len(W_enc_FD)
    x_BD = x_BD.detach().contiguous()
    bias_F = torch.zeros(n_latents) if b_enc_F is None else b_enc_F.detach().contiguous()
    values_BK, indices_BK = torch.empty(n_rows, k), torch.empty(n_rows, k, dtype=torch.int64)
    if screen is None:
        screen = screening_pays(n_rows, n_latents, x_BD.shape[1], k)
    block = _block(n_latents)
    encoder: _Plain | _Screened
    encoder = (_Screened if screen else _Plain)(W_enc_FD.detach(), bias_F, block, k)
    run_blocks(lambda a, b: encoder(x_BD[a:b], values_BK.numpy()[a:b], indices_BK.numpy()[a:b]), n_rows, block)
    return values_BK.clamp_(min=0), indices_BK


@cache
def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def screening_pays(n_rows: int, n_latents: int, width: int, k: int) -> bool:
    """Whether a bfloat16 screen is expected to be faster: what it adds must be small beside the product."""
    return has_fast_bf16() and n_rows >= 64 and width >= 32 and n_latents >= 16 * k


class _Plain:
    """Top-k of blocks of rows by a float32 product."""

    def __init__(self, W_FD: Tensor, b_F: Tensor, block: int, k: int) -> None:
        self.W_FD, self.bias, self.k = W_FD, b_F.numpy(), k
        self.shape, self.n_groups = (block, len(W_FD)), _n_groups(len(W_FD), k)

    def __call__(self, x_RD: Tensor, values: rows.Array, indices: rows.Array) -> None:
        pre_RF = _buffer(self.shape, torch.float32)[: len(x_RD)]
        torch.mm(x_RD, self.W_FD.t(), out=pre_RF)
        rows.topk_rows(pre_RF.numpy(), self.bias, self.k, self.n_groups, values, indices)


class _Screened:
    """The same by a bfloat16 product, with a bound on its error, and float32 products of what the bound leaves.

    |x . w - bf16(x) . bf16(w)| <= |x - bf16(x)| |bf16(w)| + |x| |w - bf16(w)|  (Cauchy-Schwarz), plus the rounding of sums.
    """

    def __init__(self, W_FD: Tensor, b_F: Tensor, block: int, k: int) -> None:
        n_latents, width = W_FD.shape
        self.W, self.bias, self.k = W_FD.contiguous().numpy(), b_F.numpy(), k
        self.shape, self.n_groups = (block, n_latents), _n_groups(n_latents, k)
        self.W_bf16_FD = torch.empty(n_latents, width, dtype=torch.bfloat16)
        bits, norms, lost = self.W_bf16_FD.view(torch.uint16).numpy(), *np.empty((2, n_latents), np.float32)
        run_blocks(lambda a, b: rows.round_rows(self.W[a:b], bits[a:b], norms[a:b], lost[a:b]), n_latents, 256)
        self.norms = norms + lost  # at least |bf16(w)|
        share_lost = float((lost / np.maximum(self.norms, np.finfo(np.float32).tiny)).max())
        self.per_size = np.float32(share_lost + (width + 8) * 2.0**-23)

    def __call__(self, x_RD: Tensor, values: rows.Array, indices: rows.Array) -> None:
        x, screen_RF = x_RD.numpy(), _buffer(self.shape, torch.bfloat16)[: len(x_RD)]
        x_bf16_RD = torch.empty_like(x_RD, dtype=torch.bfloat16)
        sizes, lost = np.empty((2, len(x_RD)), np.float32)
        rows.round_rows(x, x_bf16_RD.view(torch.uint16).numpy(), sizes, lost)
        errors = lost + self.per_size * sizes
        torch.mm(x_bf16_RD, self.W_bf16_FD.t(), out=screen_RF)
        screen = screen_RF.view(torch.uint16).numpy()
        rows.screened_rows(screen, errors, self.norms, x, self.W, self.bias, self.k, self.n_groups, values, indices)


def _buffer(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """This thread's matrix for a block of pre-activations; fresh memory for each block would cost more than its top-k."""
    kept: Tensor | None = getattr(_scratch, "block", None)
    if kept is None or kept.shape != shape or kept.dtype != dtype:
        kept = _scratch.block = torch.empty(shape, dtype=dtype)
    return kept


def _n_groups(n_columns: int, k: int) -> int:
    """Columns fall into groups of about 16, but there are several times more groups than k."""
    return min(n_columns, max(n_columns // 16, 4 * k))


def _block(n_columns: int) -> int:
    """Rows whose pre-activations stay in the cache between the product and the selection."""
    return max(64, min(512, (1 << 21) // n_columns))
