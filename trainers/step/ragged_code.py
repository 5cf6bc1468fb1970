"""A sparse code of a batch: which latents fire on which token, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from saekit.sae.kernels import gather_decode


@dataclass(frozen=True, eq=False)
class Code:
    """Rows of any length, one after the other: the latents of row b are entries `start[b] : start[b + 1]`.

    Attributes:
        values_N: (N,) coefficients. An entry of 0 does not fire; it may be padding.
        latents_N: (N,) int64, in no particular order within a row.
        start_B1: (B + 1,) int64, from 0 to N.
        K: entries of every row where all have as many, else None.
    """

    values_N: Tensor
    latents_N: Tensor
    start_B1: Tensor
    K: int | None = None

    @classmethod
    def of(cls, values_BK: Tensor, latents_BK: Tensor) -> Code:
        """A code whose rows all have K entries; nothing is copied."""
        B, K = values_BK.shape
        start_B1 = K * torch.arange(B + 1, device=values_BK.device)
        return cls(values_BK.reshape(-1), latents_BK.reshape(-1), start_B1, K)

    @classmethod
    def of_dense(cls, values_BF: Tensor, keep_BF: Tensor | None = None) -> Code:
        """The entries of a (B, F) matrix where `keep` is true, or that are not 0; differentiable in the values."""
        keep_BF = values_BF != 0 if keep_BF is None else keep_BF
        row_N, latents_N = keep_BF.nonzero(as_tuple=True)
        counts_B = torch.bincount(row_N, minlength=len(values_BF))
        start_B1 = torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])
        return cls(values_BF[row_N, latents_N], latents_N, start_B1)

    @classmethod
    def beside(cls, codes: Sequence[Code]) -> Code:
        """Codes of the same rows, of different latents, as one."""
        order_N = torch.cat([code.row_N for code in codes]).argsort(stable=True)
        values_N = torch.cat([code.values_N for code in codes])[order_N]
        latents_N = torch.cat([code.latents_N for code in codes])[order_N]
        return cls(values_N, latents_N, torch.stack([code.start_B1 for code in codes]).sum(0))

    def __len__(self) -> int:
        return len(self.start_B1) - 1

    @property
    def row_N(self) -> Tensor:
        """The row of every entry."""
        rows_B = torch.arange(len(self), device=self.start_B1.device)
        return torch.repeat_interleave(rows_B, self.start_B1.diff(), output_size=len(self.latents_N))

    def detach(self) -> Code:
        return self.with_values(self.values_N.detach())

    def with_values(self, values_N: Tensor) -> Code:
        """Other values of the same entries."""
        return replace(self, values_N=values_N)

    def split(self, ends_G: Tensor) -> Code:
        """The same with G rows for each: row b * G + g has the latents of row b from ends[g - 1] up to, not with, ends[g]."""
        level_N = torch.bucketize(self.latents_N, ends_G, right=True)
        row_N = self.row_N * len(ends_G) + level_N
        order_N = row_N.argsort(stable=True)
        counts_R = torch.bincount(row_N, minlength=len(self) * len(ends_G))
        start_R1 = torch.cat([counts_R.new_zeros(1), counts_R.cumsum(0)])
        return Code(self.values_N[order_N], self.latents_N[order_N], start_R1)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Values and latents (B, K), K the length of the longest row (at least 1); short rows end in value 0 at latent 0."""
        if self.K:
            return self.values_N.view(-1, self.K), self.latents_N.view(-1, self.K)
        shape = len(self), max(1, int(self.start_B1.diff().max())) if len(self) else 1
        row_N = self.row_N
        place = row_N, torch.arange(len(row_N), device=row_N.device) - self.start_B1[row_N]
        values_BK = self.values_N.new_zeros(shape).index_put(place, self.values_N)
        return values_BK, self.latents_N.new_zeros(shape).index_put(place, self.latents_N)

    def dense(self, n_latents: int) -> Tensor:
        """The same as one (B, F) matrix; repeated latents add up."""
        zeros = self.values_N.new_zeros(len(self), n_latents)
        return zeros.index_put((self.row_N, self.latents_N), self.values_N, accumulate=True)

    def firings(self, n_latents: int) -> Tensor:
        """(F,) int64: entries above 0 of each latent."""
        counts_F = torch.zeros(n_latents, dtype=torch.int64, device=self.latents_N.device)
        return counts_F.scatter_add_(0, self.latents_N, (self.values_N > 0).long())

    def sums(self, n_latents: int, numbers_N: Tensor) -> Tensor:
        """(F,) totals over the entries of each latent of a number that every entry has."""
        return numbers_N.new_zeros(n_latents).scatter_add_(0, self.latents_N, numbers_N)

    def decode(self, W_dec_FE: Tensor, b_dec_E: Tensor | None = None) -> Tensor:
        """`sum_n values[n] * W_dec[latents[n]] + b_dec` of every row, (B, E); differentiable in values, W_dec and b_dec."""
        if self.K:
            return gather_decode(*self.padded(), W_dec_FE, b_dec_E, backend="torch")
        if len(self.latents_N):
            start_B = self.start_B1[:-1]
            out_BE = embedding_bag(self.latents_N, W_dec_FE, start_B, per_sample_weights=self.values_N, mode="sum")
        else:
            out_BE = W_dec_FE.new_zeros(len(self), W_dec_FE.shape[1])
        return out_BE if b_dec_E is None else out_BE + b_dec_E
