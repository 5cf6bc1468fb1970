"""Sparse codes on the CPU in float32, with numba: the wrappers around :mod:`saekit.sae.kernels.rows` and :mod:`.largest`.

The product of the encoder can run in bfloat16 as a *screen*, which is twice as fast on a CPU with bfloat16 instructions. A proven
bound on the rounding error leaves a few dozen latents per row that can be among the k largest. These are computed again in
float32, so selection and values are those of a float32 encoder.
"""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
import torch
from torch import Tensor

from saekit.sae.kernels import largest, rows
from saekit.sae.kernels.threads import run_blocks

_scratch = threading.local()
_UNIT = np.float32(1.001 * rows.BF16_UNIT)  # slightly above the relative rounding error of bfloat16


def topk(pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n_rows, n_columns = pre_BF.shape
    values_BK, indices_BK = torch.empty(n_rows, k), torch.empty(n_rows, k, dtype=torch.int64)
    pre, values, indices = pre_BF.detach().contiguous().numpy(), values_BK.numpy(), indices_BK.numpy()
    no_bias, n_groups = np.zeros(n_columns, np.float32), _n_groups(n_columns, k)

    def select(a: int, b: int) -> None:
        largest.topk_rows(pre[a:b], no_bias, k, n_groups, values[a:b], indices[a:b])

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
    values_BK, indices_BK = torch.empty(n_rows, k), torch.empty(n_rows, k, dtype=torch.int64)
    encoder = _encoder(x_BD, W_enc_FD, b_enc_F, k, screen)
    x_BD, n_groups = x_BD.detach().contiguous(), _n_groups(n_latents, k)

    def work(a: int, b: int) -> None:
        encoder.topk(x_BD[a:b], k, n_groups, values_BK.numpy()[a:b], indices_BK.numpy()[a:b])

    run_blocks(work, n_rows, encoder.block)
    return values_BK.clamp_(min=0), indices_BK


def encode_abstopk(x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    n_rows, n_latents = len(x_BD), len(W_enc_FD)
    values_BK, indices_BK = torch.empty(n_rows, k), torch.empty(n_rows, k, dtype=torch.int64)
    encoder = _encoder(x_BD, W_enc_FD, b_enc_F, k, screen=False)
    assert isinstance(encoder, _Plain)
    x_BD, n_groups, no_bias = x_BD.detach().contiguous(), _n_groups(n_latents, k), np.zeros(n_latents, np.float32)

    def work(a: int, b: int) -> None:
        pre = encoder.product(x_BD[a:b])
        pre += encoder.bias
        values, indices = values_BK.numpy()[a:b], indices_BK.numpy()[a:b]
        largest.topk_rows(np.abs(pre), no_bias, k, n_groups, values, indices)
        np.copysign(values, np.take_along_axis(pre, indices, 1), out=values)

    run_blocks(work, n_rows, encoder.block)
    return values_BK, indices_BK


def encode_above(
    x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, floor_F: Tensor, expected: float, screen: bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows, n_latents = len(x_BD), len(W_enc_FD)
    encoder = _encoder(x_BD, W_enc_FD, b_enc_F, expected, screen)
    x_BD, floor = x_BD.detach().contiguous(), floor_F.detach().expand(n_latents).contiguous().numpy()
    start_B1 = torch.zeros(n_rows + 1, dtype=torch.int64)
    parts: list[tuple[Tensor, Tensor]] = [(torch.empty(0), start_B1[:0])] * -(-n_rows // encoder.block)

    def work(a: int, b: int) -> None:
        # Buffers have the largest possible size, but the system allocates only pages that are written. The clones are small.
        values_N, columns_N = torch.empty((b - a) * n_latents + 1), torch.empty((b - a) * n_latents + 1, dtype=torch.int64)
        n = encoder.above(x_BD[a:b], floor, values_N.numpy(), columns_N.numpy(), start_B1.numpy()[a + 1 : b + 1])
        parts[a // encoder.block] = values_N[:n].clone(), columns_N[:n].clone()

    run_blocks(work, n_rows, encoder.block)
    values, latents = ([part[i] for part in parts] for i in (0, 1))
    return torch.cat(values or [torch.empty(0)]), torch.cat(latents or [start_B1[:0]]), start_B1.cumsum_(0)


def _encoder(x_BD: Tensor, W_FD: Tensor, b_F: Tensor | None, kept: float, screen: bool | None) -> _Plain | _Screened:
    n_latents, width = W_FD.shape
    bias_F = torch.zeros(n_latents) if b_F is None else b_F.detach().contiguous()
    screen = screening_pays(len(x_BD), n_latents, width, kept) if screen is None else screen
    return (_Screened if screen else _Plain)(W_FD.detach(), bias_F, _block(n_latents))


@cache
def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def screening_pays(n_rows: int, n_latents: int, width: int, kept: float) -> bool:
    """Whether a bfloat16 screen is expected to be faster: the product must take much longer than the screen's extra work."""
    return has_fast_bf16() and n_rows >= 64 and width >= 32 and n_latents >= 16 * kept


class _Plain:
    """Encodes blocks of rows with a float32 product."""

    def __init__(self, W_FD: Tensor, b_F: Tensor, block: int) -> None:
        self.W_FD, self.bias, self.block = W_FD, b_F.numpy(), block

    def topk(self, x_RD: Tensor, k: int, n_groups: int, values: rows.Array, indices: rows.Array) -> None:
        largest.topk_rows(self.product(x_RD), self.bias, k, n_groups, values, indices)

    def above(self, x_RD: Tensor, floor: rows.Array, values: rows.Array, columns: rows.Array, counts: rows.Array) -> int:
        nothing, no_matrix = np.zeros(max(len(x_RD), len(self.bias)), np.float32), np.empty((0, 0), np.float32)
        screen = self.product(x_RD), nothing, nothing, no_matrix, no_matrix
        found: int = largest.above_rows(*screen, np.float32(0), self.bias, floor, values, columns, counts)
        return found

    def product(self, x_RD: Tensor) -> rows.Array:
        pre_RF = _buffer((self.block, len(self.W_FD)), torch.float32)[: len(x_RD)]
        return torch.mm(x_RD, self.W_FD.t(), out=pre_RF).numpy()


class _Screened:
    """Encodes blocks of rows with a bfloat16 product, and computes the entries that its error bound leaves again in float32.

    The bound is |x . w - bf16(x) . bf16(w)| <= |x - bf16(x)| |bf16(w)| + |x| |w - bf16(w)|  (Cauchy-Schwarz), plus the rounding
    errors of the sums.
    """

    def __init__(self, W_FD: Tensor, b_F: Tensor, block: int) -> None:
        n_latents, width = W_FD.shape
        self.W, self.bias, self.block = W_FD.contiguous().numpy(), b_F.numpy(), block
        self.W_bf16_FD = torch.empty(n_latents, width, dtype=torch.bfloat16)
        bits, norms, lost = self.W_bf16_FD.view(torch.uint16).numpy(), *np.empty((2, n_latents), np.float32)
        run_blocks(lambda a, b: rows.round_rows(self.W[a:b], bits[a:b], norms[a:b], lost[a:b]), n_latents, 256)
        self.norms = norms + lost  # at least |bf16(w)|
        share_lost = float((lost / np.maximum(self.norms, np.finfo(np.float32).tiny)).max())
        self.per_size = np.float32(share_lost + (width + 8) * 2.0**-23)

    def topk(self, x_RD: Tensor, k: int, n_groups: int, values: rows.Array, indices: rows.Array) -> None:
        largest.screened_rows(*self._screen(x_RD), self.bias, k, n_groups, values, indices)

    def above(self, x_RD: Tensor, floor: rows.Array, values: rows.Array, columns: rows.Array, counts: rows.Array) -> int:
        found: int = largest.above_rows(*self._screen(x_RD), _UNIT, self.bias, floor, values, columns, counts)
        return found

    def _screen(self, x_RD: Tensor) -> tuple[rows.Array, ...]:
        """The bfloat16 product, the factors of its error bound by row and by column, and x and W for float32 products."""
        x, screen_RF = x_RD.numpy(), _buffer((self.block, len(self.W)), torch.bfloat16)[: len(x_RD)]
        x_bf16_RD = torch.empty_like(x_RD, dtype=torch.bfloat16)
        sizes, lost = np.empty((2, len(x_RD)), np.float32)
        rows.round_rows(x, x_bf16_RD.view(torch.uint16).numpy(), sizes, lost)
        torch.mm(x_bf16_RD, self.W_bf16_FD.t(), out=screen_RF)
        return screen_RF.view(torch.uint16).numpy(), lost + self.per_size * sizes, self.norms, x, self.W


def _buffer(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix of this thread for the pre-activations of a block. It is reused: allocating it takes longer than the top-k."""
    kept: Tensor | None = getattr(_scratch, "block", None)
    if kept is None or kept.shape != shape or kept.dtype != dtype:
        kept = _scratch.block = torch.empty(shape, dtype=dtype)
    return kept


def _n_groups(n_columns: int, k: int) -> int:
    """The number of groups of columns: about 16 columns per group, and at least 4 k groups where there are as many columns."""
    return min(n_columns, max(n_columns // 16, 4 * k))


def _block(n_columns: int) -> int:
    """The number of rows per block. Pre-activations of a small block are still in a cache during selection. The product repacks
    all of W for every block, which makes very small blocks slow."""
    return max(64, min(512, 1 << ((1 << 23) // n_columns).bit_length() - 1))
