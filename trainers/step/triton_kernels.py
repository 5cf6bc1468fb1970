"""What :mod:`trainers.step.sparse_gradient` does with numba on a CPU, with the Triton kernels on a GPU.

Sums run over the entries of a token, or of a latent once they are sorted by latent: the same bits every time, and no (F, D)
gradient in memory beyond the block of latents whose Adam step is being done. Losses and the L0 that a penalty is steered by are
read in every step, which waits for the device. Triton's interpreter is how it is tested; no figure of a GPU has been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saekit.sae.kernels.gpu import by_latent, dot_rows, sum_rows
from saekit.sae.kernels.gpu_adam import Constants, adam_rows
from trainers.step.adam import Adam
from trainers.step.parameters import Parameters
from trainers.step.ragged_code import Code


def decode_gradient(
    code: Code, W_dec_FE: Tensor, b_dec_E: Tensor | None, target_BE: Tensor, scale: float
) -> tuple[Tensor, Tensor, float]:
    """As :func:`trainers.step.sparse_gradient.decode_gradient`, for the processes' parts of which it is told."""
    levels = len(code) // max(1, len(target_BE))
    parts_RE = sum_rows(code.start_B1, code.latents_N, code.values_N, W_dec_FE)
    target_BE = target_BE if b_dec_E is None else target_BE - b_dec_E
    error_BGE = parts_RE.view(len(target_BE), levels, -1).cumsum(1) - target_BE[:, None]
    squares = float(error_BGE.square().sum())
    error_RE = scale * error_BGE.flip(1).cumsum(1).flip(1).flatten(0, 1)  # of its own level and those after it
    return error_RE, dot_rows(code.start_B1, code.latents_N, error_RE, W_dec_FE), squares


class Entries(NamedTuple):
    """Entries of several terms sorted by latent: those of latent l are start[l] : start[l + 1]."""

    start_F1: Tensor
    token_N: Tensor
    error_row_N: Tensor
    value_N: Tensor
    grad_N: Tensor

    @classmethod
    def of(cls, terms: Sequence[tuple[Code, Tensor]], n_latents: int, n_tokens: int) -> Entries:
        """Args:
        terms: codes of one or several rows for each token, and the gradient at their pre-activations.
        """
        first, tokens, error_rows = 0, [], []
        for code, _ in terms:
            row_N = code.row_N
            tokens.append(row_N // (len(code) // n_tokens))
            error_rows.append(row_N + first)
            first += len(code)
        start_F1, order_N = by_latent(torch.cat([code.latents_N for code, _ in terms]), n_latents)
        values, grads = [code.values_N for code, _ in terms], [grads_N for _, grads_N in terms]
        return cls(start_F1, *(torch.cat(each)[order_N] for each in (tokens, error_rows, values, grads)))


def update_latents(
    terms: Sequence[tuple[Code, Tensor]],
    error_RE: Tensor,
    x_BD: Tensor,
    along_F: Tensor | None,
    p: Parameters,
    adam: Adam,
    lr: float,
    *,
    unit_rows: bool,
) -> tuple[Tensor, Tensor]:
    """Spend the entries on an Adam step of W_enc and W_dec.

    Returns:
        (F,) the gradient of what is added to each latent's pre-activation, and (D,) that of what was added to the encoder's
        input with the old W_enc, both as :func:`trainers.step.numba_kernels.update_latents` adds them up.
    """
    entries = Entries.of(terms, len(p.W_enc_FD), len(x_BD))
    start_F1, grad_N, constants = entries.start_F1, entries.grad_N, Constants(*adam.constants(lr).tolist())
    ones_B1 = x_BD.new_ones(1, 1).expand(len(x_BD), 1)
    sums_F = sum_rows(start_F1, entries.token_N, grad_N, ones_B1)[:, 0]
    through_input_D = -sums_F @ p.W_enc_FD
    sides = (
        ("W_enc_FD", entries.token_N, grad_N, x_BD, None, False),
        ("W_dec_FE", entries.error_row_N, entries.value_N, error_RE, along_F, unit_rows),
    )
    for name, row_N, weight_N, table, along, unit in sides:
        state = p[name], adam.mean[name], adam.square[name]
        adam_rows(*state, start_F1, row_N, weight_N, table, constants, along_F=along, unit_rows=unit)
    return sums_F, through_input_D
