"""The sparse training step with numba, on a CPU in float32: the wrappers around :mod:`trainers.step.numba_kernels`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saekit.sae.code import Code
from saekit.sae.kernels.threads import run_blocks
from trainers.step import numba_kernels
from trainers.step.adam import Adam
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient

_ROW_BLOCK, _LATENT_BLOCKS = 256, 32


class NumbaStep:
    """:class:`trainers.step.kernels.SparseKernels` with numba."""

    def decode_gradient(
        self, code: Code, W_dec_FE: Tensor, b_dec_E: Tensor | None, target_BE: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, float]:
        levels = len(code) // max(1, len(target_BE))
        error_RE, grads_N = target_BE.new_empty(len(code), target_BE.shape[1]), torch.empty_like(code.values_N)
        values, latents, start = code.values_N.numpy(), code.latents_N.numpy(), code.start_B1.numpy()
        W, target, error, grads = W_dec_FE.numpy(), target_BE.numpy(), error_RE.numpy(), grads_N.numpy()
        bias = np.zeros(W.shape[1], np.float32) if b_dec_E is None else b_dec_E.numpy()
        squares = np.zeros(len(target) // _ROW_BLOCK + 1)

        def work(a: int, b: int) -> None:
            rows = slice(a * levels, b * levels)
            starts = start[rows.start : rows.stop + 1]
            squares[a // _ROW_BLOCK] = numba_kernels.decode_gradient(
                values, latents, starts, W, bias, target[a:b], np.float32(scale), error[rows], grads
            )

        run_blocks(work, len(target), _ROW_BLOCK)
        return error_RE, grads_N, float(squares.sum())

    def update_latents(
        self, gradient: SparseGradient, p: Parameters, adam: Adam, lr: float, *, unit_rows: bool
    ) -> tuple[Tensor, Tensor]:
        n_latents, width = p.W_enc_FD.shape
        start, stop, *entries = _by_latent(gradient, n_latents)
        errors, constants, sums_F = tuple(error.numpy() for error in gradient.errors), adam.constants(lr), torch.empty(n_latents)
        x = gradient.x_BD.reshape(-1, width).numpy()  # in a cross-layer transcoder, one row for each site of each token
        along = (torch.zeros(n_latents, 0) if gradient.along_FS is None else gradient.along_FS).numpy()
        ends, first_column = np.cumsum(gradient.widths_S, dtype=np.int64), gradient.first_columns(n_latents).numpy()
        groups = (p, adam.mean, adam.square)
        latent_rows = [tensor.numpy() for group in groups for tensor in (group.W_enc_FD, group.W_dec_FE)]
        block, sums = -(-n_latents // _LATENT_BLOCKS), sums_F.numpy()
        through_input = torch.zeros(_LATENT_BLOCKS, width)

        def work(a: int, b: int) -> None:
            rows = [tensor[a:b] for tensor in latent_rows]
            through = through_input[a // block].numpy()
            blocks = along[a:b], ends, first_column[a:b]
            own = (x, errors, start[a:b], stop[:, a:b], *entries, *blocks, *rows)
            numba_kernels.update_latents(*own, constants, unit_rows, sums[a:b], through)

        run_blocks(work, n_latents, block)
        return sums_F, through_input.sum(0)

    def move(self, p: Parameters, adam: Adam, name: str, gradient: Tensor, lr: float) -> None:
        tensors = (p[name], gradient.contiguous(), adam.mean[name], adam.square[name])
        numba_kernels.adam_row(*(tensor.view(-1).numpy() for tensor in tensors), adam.constants(lr))


def _by_latent(gradient: SparseGradient, n_latents: int) -> tuple[numba_kernels.Array, ...]:
    """Entries sorted by latent: where those of a latent start and stop, and their tokens, rows, values and gradients; see
    :func:`trainers.step.numba_kernels.update_latents`."""
    terms = [
        (code.values_N.numpy(), code.latents_N.numpy(), grads_N.numpy(), code.start_B1.numpy())
        for code, grads_N in gradient.terms
    ]
    start, stop = np.zeros(n_latents + 1, np.int64), np.empty((len(terms), n_latents), np.int64)
    for values, latents, grads, _ in terms:
        numba_kernels.count_latents(values, latents, grads, start[1:])
    np.cumsum(start, out=start)
    position, n = start[:-1].copy(), int(start[-1])
    token, error_row = np.empty(n, np.int32), np.empty(n, np.int32)
    value, grad = np.empty(n, np.float32), np.empty(n, np.float32)
    for ends, term, errors in zip(stop, terms, gradient.errors):
        levels = len(errors) // len(gradient.x_BD)
        numba_kernels.place_entries(*term, levels, position, token, error_row, value, grad)
        ends[:] = position
    layers, own = len(gradient.first_L), n_latents // len(gradient.first_L)
    for layer in range(layers if layers > 1 else 0):  # then x has one row for each layer of each token
        entries = slice(start[layer * own], start[(layer + 1) * own])
        token[entries] = token[entries] * layers + layer
    return start, stop, token, error_row, value, grad
