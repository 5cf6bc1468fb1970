"""Gradients of sparse codes, which never exist as (F, D) matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.step.distributed import ALONE, Group
from trainers.step.parameters import Parameters


class SparseGradient:
    """A gradient in sparse form: a sum of terms. Each term is a code with the gradients at its pre-activations and at its output.

    An entry of latent l on token b adds `grad * x[b]` to the gradient of W_enc[l], `grad` to the gradient of b_enc[l], and
    `value * error[b]` to the gradient of W_dec[l].

    Args:
        x_BD: input of the encoder.
        rest: dense gradients of the other parameters, by name. "b_enc_F" is added to the sum of the entries of the codes.
        centres: whether the encoder read x - b_dec. The gradient of b_dec then has a part that passes through the encoder.
        group: the processes whose gradients sum to the gradient of the whole batch.
        kernels: "numba" or "triton": the kernels that apply the gradient to the parameters.
        first_L: for a cross-layer transcoder, the first column of W_dec that the latents of each layer l write to. Latents are
            in L equal groups, and group l reads the l-th of L equal blocks of x. (0,) for every other dictionary.

    Attributes:
        along_FS: coefficients of W_dec in its own gradient, from a penalty on decoder norms: block s of W_dec[l] contributes
            `along[l, s] * W_dec[l, block s]`. None if there is no such penalty.
        widths_S: widths of the S blocks of columns of W_dec. They sum to E.
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
        """Add a term.

        Args:
            code: with one or several rows for each token.
            grads_N: gradient at the pre-activation of each entry.
            error_RE: gradient at the decoded output of each row.
        """
        self.terms.append((code, grads_N))
        self.errors.append(error_RE)

    def gathered(self) -> SparseGradient:
        """The gradient of the whole batch, where each process has its own rows of the batch: the entries of all processes.

        Exchanging entries takes less traffic than exchanging the dense gradients of W_enc and W_dec. The entries are in the same
        order as in a run with a single process.
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
        """Gradients of all parameters except W_enc and W_dec, from the sums that :meth:`SparseKernels.update_latents` returns."""
        others = {**self.rest, "b_enc_F": sums_F + self.rest["b_enc_F"] if "b_enc_F" in self.rest else sums_F}
        if self.centres:
            others["b_dec_E"] = others["b_dec_E"] + through_input_D
        return others

    def first_columns(self, n_latents: int) -> Tensor:
        """The first column of W_dec that each latent writes to, (F,) int64."""
        return torch.tensor(self.first_L).repeat_interleave(n_latents // len(self.first_L))
