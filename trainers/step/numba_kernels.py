"""Numba kernels of the sparse training step. Each is serial, releases the GIL, and works on its own block of rows or latents.

No (F, D) gradient is made. The two gradient rows of a latent are summed in the L1 cache, over the tokens on which it fired, and
Adam applies them at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from saekit.sae.kernels.rows import add_rows, add_scaled, dot, dot_rows, total

Array = np.ndarray[Any, Any]


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def decode_gradient(
    values: Array,
    latents: Array,
    start: Array,
    W_dec: Array,
    b_dec: Array,
    target: Array,
    scale: float,
    error: Array,
    grads: Array,
) -> float:
    """Decode rows of a ragged code in one or several levels, and the gradient of `scale / 2 * sum (x_hat - target)^2`.

    With G levels the code has G rows for each target, and level g predicts with the sum of rows up to g. Writes the gradient at
    what a row decodes to, scale * (x_hat_g - target) summed from its level to the last, and that at the values, grads[n] =
    W_dec[latents[n]] . error[row of n]. Returns sum (x_hat_g - target)^2 over these targets and all levels.
    """
    squares, levels = 0.0, len(error) // max(1, len(target))
    width = target.shape[1]
    for t in range(len(target)):
        for r in range(t * levels, (t + 1) * levels):
            row, a, b = error[r], start[r], start[r + 1]
            if r == t * levels:
                for q in range(width):
                    row[q] = b_dec[q] - target[t, q]
            else:
                row[:] = error[r - 1]
            add_rows(row, W_dec, latents[a:b], values[a:b], b - a)
            squares += float(dot(row, row))
        for r in range((t + 1) * levels - 1, t * levels - 1, -1):
            row, a, b = error[r], start[r], start[r + 1]
            for q in range(width):
                row[q] *= scale
            if r + 1 < (t + 1) * levels:
                add_scaled(row, error[r + 1], np.float32(1))
            dot_rows(row, W_dec, latents[a:b], grads[a:b], b - a)
    return squares


@njit(cache=True, nogil=True, boundscheck=False)
def count_latents(values: Array, latents: Array, grads: Array, counts: Array) -> None:
    """counts[latent] += number of its entries with a value or a gradient other than 0."""
    for n in range(len(values)):
        counts[latents[n]] += (values[n] != 0) | (grads[n] != 0)


@njit(cache=True, nogil=True, boundscheck=False)
def place_entries(
    values: Array,
    latents: Array,
    grads: Array,
    start: Array,
    levels: int,
    position: Array,
    token: Array,
    error_row: Array,
    value: Array,
    grad: Array,
) -> None:
    """Sort entries by latent (a stable counting sort). position[latent] is the place of its next entry."""
    for r in range(len(start) - 1):
        for n in range(start[r], start[r + 1]):
            if (values[n] != 0) | (grads[n] != 0):
                p = position[latents[n]]
                position[latents[n]] = p + 1
                token[p], error_row[p] = r // levels, r
                value[p], grad[p] = values[n], grads[n]


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def adam_row(weights: Array, gradient: Array, mean: Array, square: Array, adam: Array) -> None:
    """One Adam step of a row; adam = (beta1, beta2, lr / bias correction 1, 1 / sqrt(bias correction 2), eps)."""
    beta1, beta2, step, correction, eps = adam[0], adam[1], adam[2], adam[3], adam[4]
    one = np.float32(1)
    for q in range(weights.shape[0]):
        g = gradient[q]
        mean[q] = beta1 * mean[q] + (one - beta1) * g
        square[q] = beta2 * square[q] + (one - beta2) * (g * g)
        weights[q] -= step * mean[q] / (np.sqrt(square[q]) * correction + eps)


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def update_latents(
    x: Array,
    errors: tuple[Array, ...],
    start: Array,
    stop: Array,
    token: Array,
    error_row: Array,
    value: Array,
    grad: Array,
    along: Array,
    ends: Array,
    first: Array,
    W_enc: Array,
    W_dec: Array,
    enc_mean: Array,
    dec_mean: Array,
    enc_square: Array,
    dec_square: Array,
    adam: Array,
    unit_rows: bool,
    sums: Array,
    through_input: Array,
) -> None:
    """Compute the gradients of a block of latents from their entries, and make the Adam steps of their two rows.

    The entries of latent l begin at start[l], and those of term t end at stop[t, l]; their rows are of errors[t].
    A decoder row consists of blocks that end at `ends`; `along[l, s]` is what its gradient has of block s of the row itself.
    Latent l writes nothing before column first[l]: there is no gradient there.

    Writes sums[l], the gradient of what is added to the pre-activation of latent l, and adds `-sum_l sums[l] * W_enc[l]`, with
    the old W_enc, to `through_input`: the gradient of what is subtracted from the encoder's input.
    """
    enc_grad, dec_grad = np.empty(W_enc.shape[1], np.float32), np.empty(W_dec.shape[1], np.float32)
    for latent in range(W_enc.shape[0]):
        a, b = start[latent], stop[-1, latent]
        enc_grad[:] = 0
        dec_grad[:] = 0
        add_rows(enc_grad, x, token[a:b], grad[a:b], b - a)
        for t in range(len(errors)):
            c, a = a, stop[t, latent]
            add_rows(dec_grad, errors[t], error_row[c:a], value[c:a], a - c)
        a = start[latent]
        sums[latent] = total(grad[a:b])
        add_scaled(through_input, W_enc[latent], -sums[latent])
        row = W_dec[latent]
        dec_grad[: first[latent]] = 0
        begin = 0
        for s in range(len(ends)):
            if along[latent, s] != 0:
                add_scaled(dec_grad[begin : ends[s]], row[begin : ends[s]], along[latent, s])
            begin = ends[s]
        if unit_rows:
            add_scaled(dec_grad, row, -dot(dec_grad, row))
        adam_row(row, dec_grad, dec_mean[latent], dec_square[latent], adam)
        if unit_rows:
            norm = np.sqrt(dot(row, row))
            for q in range(row.shape[0] if norm > 0 else 0):  # a row of 0, as a loaded SAE may have, has no direction
                row[q] /= norm
        adam_row(W_enc[latent], enc_grad, enc_mean[latent], enc_square[latent], adam)
