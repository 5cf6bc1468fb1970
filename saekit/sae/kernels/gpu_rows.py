"""Triton kernels over the entries of a sparse code.

A sparse autoencoder needs only two kernels forward and backward. Entries come in segments: by token (as encoded) or by latent
(after sorting). One program computes a segment, so each result has one writer and one order of summation. Results are therefore
deterministic without atomics, and no matrix of the size entries x width is in memory.

Programs of the same block of columns run at about the same time and read the same columns of the table. One block of columns of
the table can fit in the L2 cache even if the whole table does not.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_rows(
    out_ptr,
    start_ptr,
    row_ptr,
    weight_ptr,
    table_ptr,
    bias_ptr,
    width,
    table_stride,
    HAS_BIAS: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[s] = bias + sum_e weight[e] * table[row[e]] over the entries e of segment s, from start[s] to start[s + 1].

    Rows of weight 0 are not read. Sums are of type SUM.
    """
    segment = tl.program_id(0).to(tl.int64)
    column_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_d = column_d < width
    last = tl.load(start_ptr + segment + 1)
    sums_ed = tl.full((BLOCK_E, BLOCK_D), 0, SUM)
    for first in range(tl.load(start_ptr + segment), last, BLOCK_E):
        entry_e = first + tl.arange(0, BLOCK_E)
        weight_e = tl.load(weight_ptr + entry_e, mask=entry_e < last, other=0).to(SUM)
        row_e = tl.load(row_ptr + entry_e, mask=entry_e < last, other=0)
        wanted_ed = (weight_e != 0)[:, None] & inside_d[None, :]
        place_ed = row_e[:, None] * table_stride + column_d[None, :]
        sums_ed += weight_e[:, None] * tl.load(table_ptr + place_ed, mask=wanted_ed, other=0).to(SUM)
    total_d = tl.sum(sums_ed, 0)
    if HAS_BIAS:
        total_d += tl.load(bias_ptr + column_d, mask=inside_d, other=0).to(SUM)
    tl.store(out_ptr + segment * width + column_d, total_d.to(out_ptr.dtype.element_ty), mask=inside_d)


@triton.jit
def dot_rows(
    out_ptr,
    start_ptr,
    row_ptr,
    x_ptr,
    table_ptr,
    width,
    x_stride,
    table_stride,
    SUM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[e] = x[s] . table[row[e]] for the entries e of segment s. Sums are of type SUM."""
    segment = tl.program_id(0).to(tl.int64)
    last = tl.load(start_ptr + segment + 1)
    for first in range(tl.load(start_ptr + segment), last, BLOCK_E):
        entry_e = first + tl.arange(0, BLOCK_E)
        row_e = tl.load(row_ptr + entry_e, mask=entry_e < last, other=0)
        sums_ed = tl.full((BLOCK_E, BLOCK_D), 0, SUM)
        for column in range(0, width, BLOCK_D):
            column_d = column + tl.arange(0, BLOCK_D)
            inside_d = column_d < width
            x_d = tl.load(x_ptr + segment * x_stride + column_d, mask=inside_d, other=0).to(SUM)
            wanted_ed = (entry_e < last)[:, None] & inside_d[None, :]
            place_ed = row_e[:, None] * table_stride + column_d[None, :]
            sums_ed += x_d[None, :] * tl.load(table_ptr + place_ed, mask=wanted_ed, other=0).to(SUM)
        tl.store(out_ptr + entry_e, tl.sum(sums_ed, 1).to(out_ptr.dtype.element_ty), mask=entry_e < last)
