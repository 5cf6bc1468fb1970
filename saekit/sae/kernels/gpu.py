"""Sparse codes on a GPU, with Triton, forward and backward: the wrappers around :mod:`saekit.sae.kernels.gpu_rows`.

A ragged code is (values_N, latents_N, start_B1); row b has the entries start[b] to start[b + 1]. A padded code (values_BK,
latents_BK) is a ragged code whose rows all have K entries. Gradients of weights are sums over the entries of each latent, which
are sorted by latent first. They are deterministic and need no atomics. No (B, K, D) matrix is made, and no (B, F) matrix larger
than a chunk of rows.

With TRITON_INTERPRET=1 in the environment before the first import of triton, the kernels run on CPU tensors, slowly. The tests
use this. Block sizes are chosen by reasoning and not tuned; performance on a GPU has not been measured.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from saekit.sae.kernels import gpu_rows, reference

CHUNK_NUMBERS = 1 << 27  # of a chunk of (rows, F) pre-activations: 512 MiB in float32, enough to occupy a GPU
BLOCK_E, BLOCK_D = 8, 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def obstacle(tensor: Tensor) -> str | None:
    """Why the Triton kernels cannot take this tensor, or None."""
    if not tensor.is_cuda and isinstance(gpu_rows.sum_rows, triton.JITFunction):  # compiled, not interpreted
        return f"on {tensor.device}"
    return None if tensor.dtype in DTYPES else f"of {tensor.dtype}"


def topk(pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    indices_BK = _select(pre_BF.detach(), k)
    return pre_BF.gather(1, indices_BK), indices_BK


def gather_decode(
    values: Tensor, latents: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor | None, start_B1: Tensor | None = None
) -> Tensor:
    """(B, D) reconstruction of a code, padded or (with `start_B1`) ragged; differentiable in values, W_dec and b_dec."""
    code = _Code.of(latents, start_B1)
    out_BD: Tensor = _Decode.apply(values.flatten(), code, W_dec_FD, b_dec_D)
    return out_BD


def encode_topk(x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        rows = max(1, CHUNK_NUMBERS // W_enc_FD.shape[0])
        parts = [topk(torch.nn.functional.linear(x_RD, W_enc_FD, b_enc_F), k) for x_RD in x_BD.split(rows)]
        pre_BK, latents_BK = torch.cat([pre for pre, _ in parts]), torch.cat([latents for _, latents in parts])
    return torch.relu(pre_activations(x_BD, W_enc_FD, b_enc_F, latents_BK, pre=pre_BK)), latents_BK


def encode_abstopk(x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        pre, latents = [], []
        for x_RD in x_BD.split(max(1, CHUNK_NUMBERS // W_enc_FD.shape[0])):
            pre_RF = torch.nn.functional.linear(x_RD, W_enc_FD, b_enc_F)
            latents.append(_select(pre_RF.abs(), k))
            pre.append(pre_RF.gather(1, latents[-1]))
    latents_BK = torch.cat(latents)
    return pre_activations(x_BD, W_enc_FD, b_enc_F, latents_BK, pre=torch.cat(pre)), latents_BK


def encode_above(x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, floor_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        pre_N, latents_N, start_B1 = reference.encode_above(x_BD, W_enc_FD, b_enc_F, floor_F, CHUNK_NUMBERS)
    return pre_activations(x_BD, W_enc_FD, b_enc_F, latents_N, start_B1, pre_N), latents_N, start_B1


def pre_activations(
    x_BD: Tensor,
    W_enc_FD: Tensor,
    b_enc_F: Tensor | None,
    latents: Tensor,
    start_B1: Tensor | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    """`x[b] . W_enc[l] + b_enc[l]` for the latents l of every row b, padded or (with `start_B1`) ragged.

    Differentiable in x, W_enc and b_enc, with gradients at these entries only.

    Args:
        pre: the result, if a dense product has already computed it. Only its gradient is then computed here.

    Returns:
        pre-activations in the shape of `latents`, in the dtype of `pre` or else of `x_BD`.
    """
    code, known_N = _Code.of(latents, start_B1), None if pre is None else pre.detach().flatten()
    pre_N: Tensor = _Encode.apply(x_BD, W_enc_FD, b_enc_F, code, known_N)
    return pre_N.reshape(latents.shape)


def dot_rows(start_B1: Tensor, latents_N: Tensor, x_BD: Tensor, table_FD: Tensor) -> Tensor:
    """(N,) float32: `x[b] . table[l]` for the latents l of every row b."""
    return _dot_rows(_Code(latents_N, start_B1), x_BD, table_FD, torch.float32)


def by_latent(latents_N: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Sort entries by latent, stably: (F + 1,) the start of each latent among the sorted entries, and (N,) the order.

    The host does not wait for the device.
    """
    sorted_N, order_N = latents_N.to(torch.int32).sort(stable=True)
    latents_F1 = torch.arange(n_latents + 1, device=latents_N.device, dtype=torch.int32)
    return torch.searchsorted(sorted_N, latents_F1), order_N


def sum_rows(
    start_S1: Tensor,
    row_N: Tensor,
    weight_N: Tensor,
    table_RD: Tensor,
    bias_D: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """(S, D): `bias + sum_e weight[e] * table[row[e]]` over the entries of each segment, in `dtype` or that of the table."""
    table_RD, width = _rows(table_RD), table_RD.shape[1]
    out_SD = table_RD.new_empty(len(start_S1) - 1, width, dtype=dtype)
    block_d = min(BLOCK_D, triton.next_power_of_2(width))
    with torch.cuda.device_of(table_RD):
        gpu_rows.sum_rows[(len(out_SD), -(-width // block_d))](
            out_SD,
            start_S1,
            row_N.contiguous(),
            weight_N.contiguous(),
            table_RD,
            None if bias_D is None else bias_D.contiguous(),
            width,
            table_RD.stride(0),
            bias_D is not None,
            _sum_type(table_RD),
            BLOCK_E,
            block_d,
        )
    return out_SD


def _select(pre_BF: Tensor, k: int) -> Tensor:
    """Columns (B, k) of the k largest entries of every row.

    Column c is in group c % G. The k groups with the largest maxima contain the k largest entries. This needs one pass over the
    matrix and the top-k of two short lists; the top-k of whole rows reads them several times.
    """
    n_rows, n_columns = pre_BF.shape
    size = min(1 << int(math.log2(math.sqrt(n_columns / k))), n_columns & -n_columns)
    groups_BSG = pre_BF.reshape(n_rows, size, n_columns // size)
    group_BK = groups_BSG.amax(1).topk(k, sorted=False).indices
    candidates_BSK = groups_BSG.gather(2, group_BK[:, None].expand(-1, size, -1))
    best_BK = candidates_BSK.flatten(1).topk(k, sorted=False).indices
    return best_BK // k * groups_BSG.shape[2] + group_BK.gather(1, best_BK % k)


class _Code(NamedTuple):
    """The positions of the entries of a code: row b has the latents `latents[e]` for e from start[b] to start[b + 1]."""

    latents_N: Tensor
    start_B1: Tensor

    @classmethod
    def of(cls, latents: Tensor, start_B1: Tensor | None) -> _Code:
        if start_B1 is None:
            n_rows, n_kept = latents.shape
            start_B1 = torch.arange(n_rows + 1, device=latents.device) * n_kept
        return cls(latents.flatten(), start_B1.contiguous())

    @property
    def row_N(self) -> Tensor:
        """The row that each entry comes from."""
        rows_B = torch.arange(len(self.start_B1) - 1, device=self.start_B1.device)
        return rows_B.repeat_interleave(self.start_B1.diff(), output_size=len(self.latents_N))


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, code: _Code, W_FD: Tensor, b_D: Tensor | None) -> Tensor:
        ctx.save_for_backward(values_N, *code, W_FD)
        return sum_rows(code.start_B1, code.latents_N, values_N, W_FD, b_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        values_N, latents_N, start_B1, W_FD = ctx.saved_tensors
        code = _Code(latents_N, start_B1)
        grad_values_N = grad_W_FD = grad_b_D = None
        if ctx.needs_input_grad[0]:
            grad_values_N = _dot_rows(code, grad_BD, W_FD, values_N.dtype)
        if ctx.needs_input_grad[2]:
            start_F1, order_N = by_latent(code.latents_N, len(W_FD))
            grad_W_FD = sum_rows(start_F1, code.row_N[order_N], values_N[order_N], grad_BD, dtype=W_FD.dtype)
        if ctx.needs_input_grad[3]:
            grad_b_D = grad_BD.sum(0)
        return grad_values_N, None, grad_W_FD, grad_b_D


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, W_FD: Tensor, b_F: Tensor | None, code: _Code, known_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BD, W_FD, *code)
        ctx.b_dtype = None if b_F is None else b_F.dtype
        if known_N is not None:
            return known_N.view_as(known_N)
        pre_N = _dot_rows(code, x_BD, W_FD, torch.promote_types(x_BD.dtype, torch.float32))
        return (pre_N if b_F is None else pre_N + b_F[code.latents_N]).to(x_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, W_FD, latents_N, start_B1 = ctx.saved_tensors
        grad_x_BD = grad_W_FD = grad_b_F = None
        if ctx.needs_input_grad[0]:
            grad_x_BD = sum_rows(start_B1, latents_N, grad_N, W_FD, dtype=x_BD.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            start_F1, order_N = by_latent(latents_N, len(W_FD))
            row_N, grad_N = _Code(latents_N, start_B1).row_N[order_N], grad_N[order_N]
        if ctx.needs_input_grad[1]:
            grad_W_FD = sum_rows(start_F1, row_N, grad_N, x_BD, dtype=W_FD.dtype)
        if ctx.needs_input_grad[2]:
            ones_B1 = x_BD.new_ones(1, 1).expand(len(x_BD), 1)
            grad_b_F = sum_rows(start_F1, row_N, grad_N, ones_B1, dtype=ctx.b_dtype).flatten()
        return grad_x_BD, grad_W_FD, grad_b_F, None, None


def _dot_rows(code: _Code, x_BD: Tensor, table_FD: Tensor, dtype: torch.dtype) -> Tensor:
    """(N,): `x[b] . table[l]` for the latents l of every row b."""
    x_BD, table_FD, width = _rows(x_BD), _rows(table_FD), table_FD.shape[1]
    out_N = x_BD.new_empty(len(code.latents_N), dtype=dtype)
    with torch.cuda.device_of(table_FD):
        gpu_rows.dot_rows[(len(x_BD),)](
            out_N,
            code.start_B1,
            code.latents_N,
            x_BD,
            table_FD,
            width,
            x_BD.stride(0),
            table_FD.stride(0),
            _sum_type(table_FD),
            BLOCK_E,
            min(BLOCK_D, triton.next_power_of_2(width)),
        )
    return out_N


def _rows(table_RD: Tensor) -> Tensor:
    """The same matrix with every row contiguous; the stride between rows is free."""
    return table_RD if table_RD.stride(1) == 1 else table_RD.contiguous()


def _sum_type(table: Tensor) -> tl.dtype:
    return tl.float64 if table.dtype == torch.float64 else tl.float32
