"""The sparse training step with Triton kernels, on a GPU in float32.

Sums run over the entries of a token or, after sorting, over the entries of a latent. Results are bit-identical in every run. No
(F, D) gradient is in memory, only that of the block of latents that Adam updates. Every step reads the losses, and the L0 that
adjusts a penalty, which waits for the device. The tests run these kernels in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saekit.sae.code import Code
from saekit.sae.kernels.gpu import by_latent, dot_rows, sum_rows
from saekit.sae.kernels.gpu_adam import Constants, adam_rows
from trainers.step.adam import Adam
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


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


class TritonStep:
    """:class:`trainers.step.kernels.SparseKernels` with Triton. Dictionaries of one site only."""

    def decode_gradient(
        self, code: Code, W_dec_FE: Tensor, b_dec_E: Tensor | None, target_BE: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, float]:
        levels = len(code) // max(1, len(target_BE))
        parts_RE = sum_rows(code.start_B1, code.latents_N, code.values_N, W_dec_FE)
        target_BE = target_BE if b_dec_E is None else target_BE - b_dec_E
        error_BGE = parts_RE.view(len(target_BE), levels, -1).cumsum(1) - target_BE[:, None]
        squares = float(error_BGE.square().sum())
        error_RE = scale * error_BGE.flip(1).cumsum(1).flip(1).flatten(0, 1)  # of its own level and those after it
        return error_RE, dot_rows(code.start_B1, code.latents_N, error_RE, W_dec_FE), squares

    def update_latents(
        self, gradient: SparseGradient, p: Parameters, adam: Adam, lr: float, *, unit_rows: bool
    ) -> tuple[Tensor, Tensor]:
        x_BD, error_RE = gradient.x_BD, torch.cat(gradient.errors)
        along_F = None if gradient.along_FS is None else gradient.along_FS[:, 0]
        entries = Entries.of(gradient.terms, len(p.W_enc_FD), len(x_BD))
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

    def move(self, p: Parameters, adam: Adam, name: str, gradient: Tensor, lr: float) -> None:
        adam.move(p, name, gradient, lr)
