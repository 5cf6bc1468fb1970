"""Numba kernels that find the largest entries of rows, or those above a floor; see :mod:`saekit.sae.kernels.rows`."""

from __future__ import annotations

import numpy as np
from numba import njit

from saekit.sae.kernels.rows import BF16_UNIT, FAST, Array, bf16_to_float, dot_rows


@njit(cache=True, nogil=True, boundscheck=False)
def _kth_largest(numbers: Array, n: int, k: int) -> float:
    """The k-th largest of numbers[:n], which it reorders (quickselect)."""
    low, high, target = 0, n - 1, k - 1
    while low < high:
        pivot = numbers[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while numbers[i] > pivot:
                i += 1
            while numbers[j] < pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            break
    return numbers[target]


@njit(cache=True, fastmath=FAST, nogil=True, boundscheck=False, error_model="numpy")
def _raise_to(largest: Array, row: Array, bias: Array, norms: Array, error: float) -> None:
    """largest = max(largest, row + bias - error * norms). A separate function, because slices vectorise and offsets do not."""
    for c in range(row.shape[0]):
        value = bf16_to_float(row[c]) + bias[c] - error * norms[c]
        largest[c] = value if value > largest[c] else largest[c]


@njit(cache=True, fastmath=FAST, nogil=True, boundscheck=False, error_model="numpy")
def _candidates(
    row: Array,
    low_bias: Array,
    high_bias: Array,
    norms: Array,
    k: int,
    error: float,
    reach: float,
    relative: float,
    group_max: Array,
    hits: Array,
    values: Array,
    indices: Array,
) -> int:
    """Collect every column whose exact value can be among the k largest. Returns their number.

    The exact value of column c lies between `row[c] + low_bias[c] - error * norms[c]` and `row[c] + high_bias[c] + error *
    norms[c]`, up to `relative * |row[c] + bias[c]|`. `reach` is the largest half-width of these intervals.

    Column c belongs to group c % G. The k-th largest group maximum is a lower bound of the k-th largest entry, because k groups
    have an entry at least that large. Only the few groups that reach the bound are therefore searched again.
    """
    n_columns = row.shape[0]
    n_groups = group_max.shape[0]
    group_max[:] = -np.inf
    for a in range(0, n_columns, n_groups):
        b = a + n_groups
        _raise_to(group_max, row[a:b], low_bias[a:b], norms[a:b], error)

    low, high = group_max[0], group_max[0]
    for g in range(n_groups):
        low = min(low, group_max[g])
        high = max(high, group_max[g])
    for _ in range(20):
        middle = np.float32(0.5) * (low + high)
        count = np.int32(0)
        for g in range(n_groups):
            count += np.int32(group_max[g] >= middle)
        if count >= k:
            low = middle
            if count <= k + 1:
                break
        else:
            high = middle

    # r is the half-width of the interval of a column. The exact values of k columns are at least low - relative * (|low| + r).
    # A column that cannot reach bound has an exact value below bound + relative * (|bound| + r), which is not larger.
    bound = low
    if relative > 0:
        bound -= np.float32(2) * relative * (abs(low) + reach) * (np.float32(1) + np.float32(2) * relative)
    n_hits = 0
    for g in range(n_groups):
        hits[n_hits] = g
        n_hits += group_max[g] + np.float32(2) * reach >= bound
    n = 0
    for h in range(n_hits):
        for column in range(hits[h], n_columns, n_groups):
            value = bf16_to_float(row[column]) + high_bias[column] + error * norms[column]
            values[n] = value
            indices[n] = column
            n += value >= bound
    return n


@njit(cache=True, nogil=True, boundscheck=False)
def _keep_largest(values: Array, indices: Array, n: int, k: int, scratch: Array, out_values: Array, out_indices: Array) -> None:
    """Write the k largest of the first n entries. If NaN leaves fewer than k comparable entries, the rest are NaN."""
    kept = 0
    if n >= k:
        scratch[:n] = values[:n]
        kth = _kth_largest(scratch, n, k)
        for i in range(n):
            if values[i] > kth:
                out_values[kept] = values[i]
                out_indices[kept] = indices[i]
                kept += 1
        for i in range(n):
            if kept < k and values[i] == kth:
                out_values[kept] = values[i]
                out_indices[kept] = indices[i]
                kept += 1
    for i in range(kept, k):  # fewer than k comparable entries: some are NaN
        out_values[i] = np.nan
        out_indices[i] = i


@njit(cache=True, nogil=True, boundscheck=False)
def topk_rows(pre: Array, bias: Array, k: int, n_groups: int, values: Array, indices: Array) -> None:
    """Exact top-k of every row of `pre + bias` (float32)."""
    n_columns = pre.shape[1]
    group_max = np.empty(n_groups, np.float32)
    hits = np.empty(n_groups + 1, np.int64)
    found, scratch = np.empty(n_columns + 1, np.float32), np.empty(n_columns + 1, np.float32)
    columns = np.empty(n_columns + 1, np.int64)
    no_norms = np.zeros(n_columns, np.float32)
    zero = np.float32(0)
    for r in range(pre.shape[0]):
        n = _candidates(pre[r], bias, bias, no_norms, k, zero, zero, zero, group_max, hits, found, columns)
        _keep_largest(found, columns, n, k, scratch, values[r], indices[r])


@njit(cache=True, nogil=True, boundscheck=False)
def screened_rows(
    screen: Array,
    errors: Array,
    norms: Array,
    x: Array,
    W: Array,
    bias: Array,
    k: int,
    n_groups: int,
    values: Array,
    indices: Array,
) -> int:
    """Exact top-k of every row of `x @ W.T + bias` in float32, given `screen`, the bfloat16 bits of a rounded product.

    `errors[r] * norms[c]` bounds |bf16(x) . bf16(w) - x . w|. Every column that the bounds do not rule out is computed again in
    float32, so that selection and values do not depend on the rounding of the screen. Returns the number of these columns.
    """
    n_columns = screen.shape[1]
    group_max = np.empty(n_groups, np.float32)
    hits = np.empty(n_groups + 1, np.int64)
    found, scratch = np.empty(n_columns + 1, np.float32), np.empty(n_columns + 1, np.float32)
    columns = np.empty(n_columns + 1, np.int64)
    # The product is rounded before the bias is added, by at most unit * |row| <= unit * (|row + bias| + |bias|).
    unit = np.float32(1.001 * BF16_UNIT)
    low_bias, high_bias = bias - unit * np.abs(bias), bias + unit * np.abs(bias)
    widest_norm, widest_bias = norms.max(), unit * np.abs(bias).max()
    rescored = 0
    for r in range(screen.shape[0]):
        error, reach = errors[r], errors[r] * widest_norm + widest_bias
        n = _candidates(screen[r], low_bias, high_bias, norms, k, error, reach, unit, group_max, hits, found, columns)
        dot_rows(x[r], W, columns, found, n)
        for i in range(n):
            found[i] += bias[columns[i]]
        _keep_largest(found, columns, n, k, scratch, values[r], indices[r])
        rescored += n
    return rescored


@njit(cache=True, fastmath=FAST, nogil=True, boundscheck=False, error_model="numpy")
def _count_above(row: Array, bias: Array, floor: Array, norms: Array, error: float, unit: float) -> np.int32:
    """The number of columns whose exact value can be above the floor; see :func:`above_rows`. Separate, so that it vectorises."""
    count = np.int32(0)
    for c in range(row.shape[0]):
        value = bf16_to_float(row[c])
        count += np.int32(value + unit * abs(value) + bias[c] + error * norms[c] > floor[c])
    return count


@njit(cache=True, nogil=True, boundscheck=False)
def above_rows(
    screen: Array,
    errors: Array,
    norms: Array,
    x: Array,
    W: Array,
    unit: float,
    bias: Array,
    floor: Array,
    values: Array,
    columns: Array,
    counts: Array,
) -> int:
    """Write every entry of `x @ W.T + bias` above the floor of its column, row after row. Returns the number of entries.

    If `unit` is 0, `screen` is the float32 product without bias. Otherwise `screen` holds the bits of a bfloat16 product with a
    relative rounding error of `unit`, `errors[r] * norms[c]` bounds |bf16(x) . bf16(w) - x . w|, and every entry that the bounds
    do not rule out is computed again in float32. counts[r] is set to the number of entries of row r.
    """
    n_columns, n = screen.shape[1], 0
    for r in range(screen.shape[0]):
        first, row, error = n, screen[r], errors[r]
        for a in range(0, n_columns, 32):
            b = min(a + 32, n_columns)
            if _count_above(row[a:b], bias[a:b], floor[a:b], norms[a:b], error, unit) > 0:
                for c in range(a, b):
                    value = bf16_to_float(row[c])
                    values[n] = value + bias[c]
                    columns[n] = c
                    n += value + unit * abs(value) + bias[c] + error * norms[c] > floor[c]
        if unit > 0:
            last, n = n, first
            dot_rows(x[r], W, columns[first:last], values[first:last], last - first)
            for i in range(first, last):
                column = columns[i]
                value = values[i] + bias[column]
                values[n], columns[n] = value, column
                n += value > floor[column]
        counts[r] = n - first
    return n
