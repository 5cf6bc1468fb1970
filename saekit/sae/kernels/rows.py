"""Numba kernels over rows. Each is serial and releases the GIL; :mod:`saekit.sae.kernels.threads` runs blocks of rows on threads.

Results are bit-identical in every run, for two reasons. Sums may be reassociated (FAST) so that they vectorise, but only in loops
that write no array. In a loop that writes, the compiler would check at run time whether arrays are close together in memory, and
use a loop with another order of summation if they are. All other computations keep the order of the code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

Array = np.ndarray[Any, Any]
FAST = {"reassoc", "contract", "nsz"}  # not nnan or ninf: NaN and infinity keep their meaning
BF16_UNIT = 2.0**-8  # largest relative error of rounding to bfloat16


@intrinsic
def bf16_to_float(typing_context, bits):  # type: ignore[no-untyped-def]
    """The float32 of a bfloat16 given as uint16; a float32 passes through."""

    def from_bits(context, builder, signature, args):  # type: ignore[no-untyped-def]
        wide = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    def same(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return args[0]

    return types.float32(bits), same if bits == types.float32 else from_bits


@intrinsic
def _float_to_bf16(typing_context, number):  # type: ignore[no-untyped-def]
    """Round a float32 to the nearest bfloat16 (ties to even), as uint16."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        i32 = ir.IntType(32)
        bits = builder.bitcast(args[0], i32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(i32, 16)), ir.Constant(i32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(i32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(i32, 16)), ir.IntType(16))

    return types.uint16(types.float32), code


@intrinsic
def _prefetch(typing_context, table, row, column):  # type: ignore[no-untyped-def]
    """Prefetch the cache line of table[row, column]. Does not wait for it."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        array = make_array(signature.args[0])(context, builder, args[0])
        item = cgutils.get_item_pointer(context, builder, signature.args[0], array, list(args[1:]), wraparound=False)
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(fetch, [builder.bitcast(item, byte), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(table, types.intp, types.intp), code


@njit(cache=True, nogil=True, boundscheck=False)
def _fetch_rows(table: Array, rows: Array, first: int, stop: int) -> None:
    """Prefetch table[rows[i]] for first <= i < stop, while other rows are in use."""
    for i in range(first, stop):
        for q in range(0, table.shape[1], 16):
            _prefetch(table, rows[i], q)


@njit(cache=True, fastmath=FAST, nogil=True, boundscheck=False, error_model="numpy")
def dot(a: Array, b: Array) -> np.float32:
    """Sum of a * b."""
    result = np.float32(0)
    for q in range(a.shape[0]):
        result += a[q] * b[q]
    return result


@njit(cache=True, fastmath=FAST, nogil=True, boundscheck=False, error_model="numpy")
def total(a: Array) -> np.float32:
    """Sum of a."""
    result = np.float32(0)
    for q in range(a.shape[0]):
        result += a[q]
    return result


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def add_scaled(out: Array, row: Array, factor: float) -> None:
    """out += factor * row."""
    for q in range(out.shape[0]):
        out[q] += factor * row[q]


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def add_rows(out: Array, table: Array, rows: Array, weights: Array, n: int) -> None:
    """out += sum_i weights[i] * table[rows[i]] over the first n. Four rows at a time, so that four cache misses overlap."""
    width = out.shape[0]
    i = 0
    while i + 4 <= n:
        _fetch_rows(table, rows, i + 4, min(i + 8, n))
        a, b, c, d = table[rows[i]], table[rows[i + 1]], table[rows[i + 2]], table[rows[i + 3]]
        wa, wb, wc, wd = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for q in range(width):
            out[q] += (wa * a[q] + wb * b[q]) + (wc * c[q] + wd * d[q])
        i += 4
    while i < n:
        a, wa = table[rows[i]], weights[i]
        for q in range(width):
            out[q] += wa * a[q]
        i += 1


@njit(cache=True, fastmath=FAST, nogil=True, boundscheck=False, error_model="numpy")
def dot_rows(x: Array, table: Array, rows: Array, out: Array, n: int) -> None:
    """out[i] = x . table[rows[i]] for the first n."""
    width = x.shape[0]
    i = 0
    while i + 4 <= n:
        a, b, c, d = table[rows[i]], table[rows[i + 1]], table[rows[i + 2]], table[rows[i + 3]]
        sa = sb = sc = sd = np.float32(0)
        for q in range(width):
            sa += x[q] * a[q]
            sb += x[q] * b[q]
            sc += x[q] * c[q]
            sd += x[q] * d[q]
        out[i], out[i + 1], out[i + 2], out[i + 3] = sa, sb, sc, sd
        i += 4
    while i < n:
        a = table[rows[i]]
        sa = np.float32(0)
        for q in range(width):
            sa += x[q] * a[q]
        out[i] = sa
        i += 1


@njit(cache=True, nogil=True, boundscheck=False)
def decode_rows(values: Array, indices: Array, W: Array, bias: Array, out: Array) -> None:
    """out[r] = bias + sum_j values[r, j] * W[indices[r, j]]."""
    for r in range(out.shape[0]):
        out[r] = bias
        add_rows(out[r], W, indices[r], values[r], values.shape[1])


@njit(cache=True, fastmath=FAST, nogil=True, boundscheck=False, error_model="numpy")
def _round_row(row: Array, bits: Array) -> tuple[np.float32, np.float32]:
    """Write bf16(row); returns |row|^2 and |row - bf16(row)|^2."""
    size, lost = np.float32(0), np.float32(0)
    for q in range(row.shape[0]):
        bits[q] = _float_to_bf16(row[q])
        difference = row[q] - bf16_to_float(bits[q])
        size += row[q] * row[q]
        lost += difference * difference
    return size, lost


@njit(cache=True, nogil=True, boundscheck=False)
def round_rows(table: Array, bits: Array, norms: Array, lost: Array) -> None:
    """bits = bf16(table); norms = |row| and lost = |row - bf16(row)|, both rounded up."""
    up = np.float32(1.0001)
    for r in range(table.shape[0]):
        size, difference = _round_row(table[r], bits[r])
        norms[r], lost[r] = up * np.sqrt(size), up * np.sqrt(difference)
