"""Gradients of sparse codes, which never exist as (F, D) matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.step.distributed import ALONE, Group
from trainers.step.parameters import Parameters


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
        self.terms: list[tuple[Code, Tensor]] = []
        self.errors: list[Tensor] = []

    def add(self, code: Code, grads_N: Tensor, error_RE: Tensor) -> None:
        """Add a term: a code of one or several rows for each token, the gradient at its pre-activations, and the gradient at
        what each row was decoded to."""
        self.terms.append((code, grads_N))
        self.errors.append(error_RE)

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
            for (code, grads_N), error_RE in zip(self.terms, self.errors)
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

    def dense(self, p: Parameters) -> Parameters:
        """The gradient as full tensors."""
        W_enc_FD, W_dec_FE, b_enc_F = (torch.zeros_like(p[name]) for name in ("W_enc_FD", "W_dec_FE", "b_enc_F"))
        for (code, grads_N), error_RE in zip(self.terms, self.errors):
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
        W_dec_FE *= columns >= self.first_columns(len(b_enc_F))[:, None]
        full = {"W_enc_FD": W_enc_FD, "W_dec_FE": W_dec_FE, **self.others(b_enc_F, -b_enc_F @ p.W_enc_FD)}
        return Parameters({name: full[name] for name in p})

    def others(self, sums_F: Tensor, through_input_D: Tensor) -> dict[str, Tensor]:
        """Gradients of all parameters but the two matrices, given the sums that :meth:`SparseKernels.update_latents` returns."""
        others = {**self.rest, "b_enc_F": sums_F + self.rest["b_enc_F"] if "b_enc_F" in self.rest else sums_F}
        if self.centres:
            others["b_dec_E"] = others["b_dec_E"] + through_input_D
        return others

    def first_columns(self, n_latents: int) -> Tensor:
        """The column of W_dec from which on each latent writes, (F,) int64."""
        return torch.tensor(self.first_L).repeat_interleave(n_latents // len(self.first_L))
