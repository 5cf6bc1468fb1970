"""Gradients of sparse codes on the CPU, and the Adam step that spends them without ever holding an (F, D) gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saekit.sae.kernels.threads import run_blocks
from trainers import step_kernels
from trainers.adam import Adam
from trainers.parameters import Parameters

_ROW_BLOCK, _LATENT_BLOCKS = 256, 32


def decode_gradient(
    values_BK: Tensor, indices_BK: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor | None, target_BD: Tensor, scale: float
) -> tuple[Tensor, Tensor, float]:
    """Decode a code and take the gradient of `scale / 2 * sum (x_hat - target)^2`.

    Returns:
        the gradient at the reconstruction (B, D), `scale * (x_hat - target)`; that at the pre-activations of the code (B, K), 0
        where the ReLU is off; and sum (x_hat - target)^2.
    """
    error_BD, grads_BK = torch.empty_like(target_BD), torch.empty_like(values_BK)
    values, indices, W, target = values_BK.numpy(), indices_BK.numpy(), W_dec_FD.numpy(), target_BD.numpy()
    bias = np.zeros(W.shape[1], np.float32) if b_dec_D is None else b_dec_D.numpy()
    error, grads = error_BD.numpy(), grads_BK.numpy()
    squares = np.zeros(len(values) // _ROW_BLOCK + 1)

    def work(a: int, b: int) -> None:
        squares[a // _ROW_BLOCK] = step_kernels.decode_gradient(
            values[a:b], indices[a:b], W, bias, target[a:b], np.float32(scale), error[a:b], grads[a:b]
        )

    run_blocks(work, len(values), _ROW_BLOCK)
    return error_BD, grads_BK, float(squares.sum())


class SparseGradient:
    """A gradient as the firings that caused it: a sum of terms, each a code with gradients at the two ends of a latent.

    A firing of latent l on token b adds `grad * x[b]` to the gradient of W_enc[l], `grad` to that of b_enc[l], and
    `value * error[b]` to that of W_dec[l].

    Args:
        x_BD: what the encoder read.
        b_dec_grad_D: gradient of b_dec through the decoder.
        centres: whether the encoder read x - b_dec, so that b_dec has a gradient through it too.
    """

    def __init__(self, x_BD: Tensor, b_dec_grad_D: Tensor, *, centres: bool) -> None:
        self.x_BD, self.b_dec_grad_D, self.centres = x_BD, b_dec_grad_D, centres
        self._terms: list[tuple[Tensor, Tensor, Tensor]] = []
        self._errors: list[Tensor] = []

    def add(self, values_BK: Tensor, indices_BK: Tensor, grads_BK: Tensor, error_BD: Tensor) -> None:
        """Add a term: a code, the gradient at its pre-activations, and the gradient at what it was decoded to."""
        self._terms.append((values_BK, indices_BK, grads_BK))
        self._errors.append(error_BD)

    def apply(self, p: Parameters, adam: Adam, lr: float, *, unit_rows: bool) -> None:
        """One Adam step of all parameters, in place; with `unit_rows`, decoder rows keep norm 1: the gradient's component along a
        row is removed before, and what is left of the change of norm afterwards."""
        adam.step += 1
        n_latents, width = p.W_enc_FD.shape
        start, token, error_row, value, grad = self._by_latent(n_latents)
        error = (self._errors[0] if len(self._errors) == 1 else torch.cat(self._errors)).numpy()
        x, constants = self.x_BD.numpy(), adam.constants(lr)
        latent_rows = [
            tensor.numpy()
            for tensors in (p, adam.mean, adam.square)
            for tensor in (tensors.W_enc_FD, tensors.b_enc_F, tensors.W_dec_FD)
        ]
        block = -(-n_latents // _LATENT_BLOCKS)
        through_encoder = np.zeros((_LATENT_BLOCKS, width), np.float32)

        def work(a: int, b: int) -> None:
            rows = [tensor[a:b] for tensor in latent_rows]
            entries = (x, error, start[a : b + 1], token, error_row, value, grad)
            step_kernels.update_latents(*entries, *rows, constants, unit_rows, through_encoder[a // block])

        run_blocks(work, n_latents, block)
        b_dec_grad = self.b_dec_grad_D.numpy()
        if self.centres:
            b_dec_grad = b_dec_grad + through_encoder.sum(0)
        step_kernels.adam_row(p.b_dec_D.numpy(), b_dec_grad, adam.mean.b_dec_D.numpy(), adam.square.b_dec_D.numpy(), constants)

    def dense(self, p: Parameters) -> Parameters:
        """The gradient as full matrices."""
        full = p.map(torch.zeros_like)
        for (values_BK, indices_BK, grads_BK), error_BD in zip(self._terms, self._errors):
            code_BF = torch.zeros(len(values_BK), len(p.b_enc_F)).scatter_add(1, indices_BK, values_BK)
            grad_BF = torch.zeros_like(code_BF).scatter_add(1, indices_BK, grads_BK)
            full.W_dec_FD += code_BF.T @ error_BD
            full.W_enc_FD += grad_BF.T @ self.x_BD
            full.b_enc_F += grad_BF.sum(0)
        full.b_dec_D += self.b_dec_grad_D
        if self.centres:
            full.b_dec_D -= full.b_enc_F @ p.W_enc_FD
        return full

    def _by_latent(self, n_latents: int) -> tuple[step_kernels.Array, ...]:
        """All firings sorted by latent: those of latent l are start[l] : start[l + 1]."""
        terms = [tuple(tensor.numpy() for tensor in term) for term in self._terms]
        start = np.zeros(n_latents + 1, np.int64)
        for values, indices, _ in terms:
            step_kernels.count_latents(values, indices, start[1:])
        np.cumsum(start, out=start)
        position, n = start[:-1].copy(), int(start[-1])
        token, error_row = np.empty(n, np.int32), np.empty(n, np.int32)
        value, grad = np.empty(n, np.float32), np.empty(n, np.float32)
        for number, (values, indices, grads) in enumerate(terms):
            first = number * len(self.x_BD)
            step_kernels.place_entries(values, indices, grads, first, position, token, error_row, value, grad)
        return start, token, error_row, value, grad
