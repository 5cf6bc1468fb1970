"""Gradients of sparse codes, and the Adam step that spends them without ever holding an (F, D) gradient.

With numba on a CPU; :mod:`trainers.step.triton_kernels` has what differs on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from saekit.sae.kernels.threads import run_blocks
from trainers.step import numba_kernels as step_kernels
from trainers.step.adam import Adam
from trainers.step.distributed import ALONE, Group
from trainers.step.parameters import Parameters
from trainers.step.ragged_code import Code

_ROW_BLOCK, _LATENT_BLOCKS = 256, 32


def decode_gradient(
    code: Code,
    W_dec_FE: Tensor,
    b_dec_E: Tensor | None,
    target_BE: Tensor,
    scale: float,
    group: Group = ALONE,
    kernels: str = "numba",
) -> tuple[Tensor, Tensor, float]:
    """Decode a code and take the gradient of `scale / 2 * sum (y_hat - target)^2`.

    A code with G rows for each of `target` (:meth:`Code.split`) predicts it G times, each time with the sum of the rows so far.

    Returns:
        the gradient at what each row decodes to (B * G, E), `scale * (y_hat - target)` summed over the predictions it is part
        of; that at the code's values (N,), firing or not; and sum (y_hat - target)^2 over all predictions.
    """
    if group.splits_latents:
        b_dec_E = b_dec_E if group.has_biases else None
        part_BE = code.decode(W_dec_FE, b_dec_E)
        target_BE = target_BE - (group.whole(part_BE) - part_BE)
    if kernels == "triton":
        from trainers.step import triton_kernels as sparse_gpu

        return sparse_gpu.decode_gradient(code, W_dec_FE, b_dec_E, target_BE, scale)
    levels = len(code) // max(1, len(target_BE))
    error_RE, grads_N = target_BE.new_empty(len(code), target_BE.shape[1]), torch.empty_like(code.values_N)
    values, latents, start = code.values_N.numpy(), code.latents_N.numpy(), code.start_B1.numpy()
    W, target, error, grads = W_dec_FE.numpy(), target_BE.numpy(), error_RE.numpy(), grads_N.numpy()
    bias = np.zeros(W.shape[1], np.float32) if b_dec_E is None else b_dec_E.numpy()
    squares = np.zeros(len(target) // _ROW_BLOCK + 1)

    def work(a: int, b: int) -> None:
        rows = slice(a * levels, b * levels)
        starts = start[rows.start : rows.stop + 1]
        squares[a // _ROW_BLOCK] = step_kernels.decode_gradient(
            values, latents, starts, W, bias, target[a:b], np.float32(scale), error[rows], grads
        )

    run_blocks(work, len(target), _ROW_BLOCK)
    return error_RE, grads_N, float(squares.sum())


class SparseGradient:
    """A gradient as the entries of codes that caused it: a sum of terms, each a code with gradients at the two ends of a latent.

    An entry of latent l on token b adds `grad * x[b]` to the gradient of W_enc[l], `grad` to that of b_enc[l], and
    `value * error[b]` to that of W_dec[l].

    Args:
        x_BD: what the encoder read.
        rest: full gradients of the other parameters, and what b_enc has beside the sum of entries.
        centres: whether the encoder read x - b_dec, so that b_dec has a gradient through it too.
        group: the processes whose gradients add up to the whole one.
        kernels: "numba" or "triton", which spend it.
        first_L: of latents in layers, which read a site each of those side by side in x: the columns of W_dec before which those
            of a layer write nothing.

    Attributes:
        along_FS: what the gradient of W_dec[l] has of W_dec[l] itself, beside the entries, in each of `widths_S` blocks of it.
    """

    def __init__(
        self,
        x_BD: Tensor,
        rest: Mapping[str, Tensor],
        *,
        centres: bool,
        group: Group = ALONE,
        kernels: str = "numba",
        first_L: Sequence[int] = (0,),
    ) -> None:
        self.x_BD, self.rest, self.centres, self.group, self.kernels = x_BD, rest, centres, group, kernels
        self.first_L = first_L
        self.along_FS: Tensor | None = None
        self.widths_S: Sequence[int] = ()
        self._terms: list[tuple[Code, Tensor]] = []
        self._errors: list[Tensor] = []

    def add(self, code: Code, grads_N: Tensor, error_RE: Tensor) -> None:
        """Add a term: a code of one or several rows for each token, the gradient at its pre-activations, and the gradient at
        what each row was decoded to."""
        self._terms.append((code, grads_N))
        self._errors.append(error_RE)

    def gathered(self) -> SparseGradient:
        """That of the whole batch, of which each process has its own rows: the entries of all.

        They are less than the rows of the two matrices that they add up to, and in the order in which a single process has them.
        """
        group = self.group
        if not group.splits_rows:
            return self
        along = {} if self.along_FS is None else {"along_FS": self.along_FS}
        rest = group.total_all({name: gradient * group.share for name, gradient in {**self.rest, **along}.items()})
        along_FS = rest.pop("along_FS", None)
        terms = [
            tensor
            for (code, grads_N), error_RE in zip(self._terms, self._errors)
            for tensor in (
                *(code.values_N, code.latents_N, code.start_B1.diff()),
                *(grads_N * group.share, error_RE * group.share),
            )
        ]
        x_BD, *gathered = map(torch.cat, group.gather(self.x_BD, *terms))
        whole = SparseGradient(x_BD, rest, centres=self.centres, kernels=self.kernels, first_L=self.first_L)
        whole.along_FS, whole.widths_S = along_FS, self.widths_S
        for values_N, latents_N, counts_B, grads_N, error_RE in zip(*(gathered[i::5] for i in range(5))):
            start_B1 = torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])
            whole.add(Code(values_N, latents_N, start_B1), grads_N, error_RE)
        return whole

    def apply(self, p: Parameters, adam: Adam, lr: float, *, unit_rows: bool) -> None:
        """One Adam step of all parameters, in place; with `unit_rows`, decoder rows keep norm 1: the gradient's component along a
        row is removed before, and what is left of the change of norm afterwards."""
        adam.step += 1
        if self.kernels == "triton":
            from trainers.step import triton_kernels as sparse_gpu

            along_F = None if self.along_FS is None else self.along_FS[:, 0]  # several blocks, and layers, are for the CPU
            rows = (self._terms, torch.cat(self._errors), self.x_BD, along_F)
            sums_F, through_input_D = sparse_gpu.update_latents(*rows, p, adam, lr, unit_rows=unit_rows)
        else:
            sums_F, through_input_D = self._update_latents(p, adam, lr, unit_rows=unit_rows)
        for name, gradient in self.group.reduce(Parameters(self._others(sums_F, through_input_D))).items():
            if self.kernels == "triton":
                adam.move(p, name, gradient, lr)
                continue
            tensors = (p[name], gradient.contiguous(), adam.mean[name], adam.square[name])
            step_kernels.adam_row(*(tensor.view(-1).numpy() for tensor in tensors), adam.constants(lr))

    def _update_latents(self, p: Parameters, adam: Adam, lr: float, *, unit_rows: bool) -> tuple[Tensor, Tensor]:
        """:func:`.update_latents` of all latents."""
        n_latents, width = p.W_enc_FD.shape
        start, stop, *entries = self._by_latent(n_latents)
        errors, constants, sums_F = tuple(error.numpy() for error in self._errors), adam.constants(lr), torch.empty(n_latents)
        x = self.x_BD.reshape(-1, width).numpy()  # in layers, a row for each site of each token
        along = (torch.zeros(n_latents, 0) if self.along_FS is None else self.along_FS).numpy()
        ends, first_column = np.cumsum(self.widths_S, dtype=np.int64), self._first_columns(n_latents).numpy()
        groups = (p, adam.mean, adam.square)
        latent_rows = [tensor.numpy() for group in groups for tensor in (group.W_enc_FD, group.W_dec_FE)]
        block, sums = -(-n_latents // _LATENT_BLOCKS), sums_F.numpy()
        through_input = torch.zeros(_LATENT_BLOCKS, width)

        def work(a: int, b: int) -> None:
            rows = [tensor[a:b] for tensor in latent_rows]
            through = through_input[a // block].numpy()
            blocks = along[a:b], ends, first_column[a:b]
            own = (x, errors, start[a:b], stop[:, a:b], *entries, *blocks, *rows)
            step_kernels.update_latents(*own, constants, unit_rows, sums[a:b], through)

        run_blocks(work, n_latents, block)
        return sums_F, through_input.sum(0)

    def dense(self, p: Parameters) -> Parameters:
        """The gradient as full tensors."""
        W_enc_FD, W_dec_FE, b_enc_F = (torch.zeros_like(p[name]) for name in ("W_enc_FD", "W_dec_FE", "b_enc_F"))
        for (code, grads_N), error_RE in zip(self._terms, self._errors):
            grad_RF = Code(grads_N, code.latents_N, code.start_B1).dense(len(b_enc_F))
            W_dec_FE += code.dense(len(b_enc_F)).T @ error_RE
            x_RD = self.x_BD.repeat_interleave(len(code) // len(self.x_BD), dim=0)
            layers = zip(W_enc_FD.chunk(len(self.first_L)), grad_RF.T.chunk(len(self.first_L)), x_RD.chunk(len(self.first_L), 1))
            for W_enc, grad, x in layers:
                W_enc += grad @ x
            b_enc_F += grad_RF.sum(0)
        if self.along_FS is not None:
            blocks = zip(self.along_FS.unbind(1), p.W_dec_FE.split(list(self.widths_S), 1))
            W_dec_FE += torch.cat([along_F[:, None] * rows for along_F, rows in blocks], 1)
        columns = torch.arange(W_dec_FE.shape[1])
        W_dec_FE *= columns >= self._first_columns(len(b_enc_F))[:, None]
        full = {"W_enc_FD": W_enc_FD, "W_dec_FE": W_dec_FE, **self._others(b_enc_F, -b_enc_F @ p.W_enc_FD)}
        return Parameters({name: full[name] for name in p})

    def _others(self, sums_F: Tensor, through_input_D: Tensor) -> dict[str, Tensor]:
        """Gradients of all but the two matrices, given what :func:`trainers.step.numba_kernels.update_latents` adds up."""
        others = {**self.rest, "b_enc_F": sums_F + self.rest["b_enc_F"] if "b_enc_F" in self.rest else sums_F}
        if self.centres:
            others["b_dec_E"] = others["b_dec_E"] + through_input_D
        return others

    def _first_columns(self, n_latents: int) -> Tensor:
        """The column of W_dec from which on each latent writes, (F,) int64."""
        return torch.tensor(self.first_L).repeat_interleave(n_latents // len(self.first_L))

    def _by_latent(self, n_latents: int) -> tuple[step_kernels.Array, ...]:
        """Where entries start and stop, and those sorted by latent, as :func:`.update_latents` has them."""
        terms = [
            (code.values_N.numpy(), code.latents_N.numpy(), grads_N.numpy(), code.start_B1.numpy())
            for code, grads_N in self._terms
        ]
        start, stop = np.zeros(n_latents + 1, np.int64), np.empty((len(terms), n_latents), np.int64)
        for values, latents, grads, _ in terms:
            step_kernels.count_latents(values, latents, grads, start[1:])
        np.cumsum(start, out=start)
        position, n = start[:-1].copy(), int(start[-1])
        token, error_row = np.empty(n, np.int32), np.empty(n, np.int32)
        value, grad = np.empty(n, np.float32), np.empty(n, np.float32)
        for ends, term, errors in zip(stop, terms, self._errors):
            levels = len(errors) // len(self.x_BD)
            step_kernels.place_entries(*term, levels, position, token, error_row, value, grad)
            ends[:] = position
        layers, own = len(self.first_L), n_latents // len(self.first_L)
        for layer in range(layers if layers > 1 else 0):  # rows of x are then those of each layer of each token
            entries = slice(start[layer * own], start[(layer + 1) * own])
            token[entries] = token[entries] * layers + layer
        return start, stop, token, error_row, value, grad
