"""Sparse codes of a batch: which latents fire on which row, and how strongly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
        K: number of entries of every row where all rows have equally many, else None.
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
        return cls(values_BF[row_N, latents_N], latents_N, _starts(counts_B))

    @classmethod
    def joined(cls, codes: Sequence[Code]) -> Code:
        """One code from several codes of the same rows with different latents."""
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

    def keep(self, keep_N: Tensor) -> Code:
        """The entries where `keep` is true."""
        counts_B = torch.bincount(self.row_N[keep_N], minlength=len(self))
        return Code(self.values_N[keep_N], self.latents_N[keep_N], _starts(counts_B))

    def with_nan(self, wrong_B: Tensor) -> Code:
        """The code with NaN at latent 0 in some rows (B,): comparisons with a threshold would pass over them silently."""
        if not bool(wrong_B.any()):
            return self
        values_N = self.values_N.new_full((int(wrong_B.sum()),), torch.nan)
        return Code.joined([Code(values_N, torch.zeros_like(values_N, dtype=torch.int64), _starts(wrong_B.long())), self])

    def split(self, ends_G: Tensor) -> Code:
        """The same with G rows for each: row b * G + g has the latents of row b from ends[g - 1] up to, not with, ends[g]."""
        level_N = torch.bucketize(self.latents_N, ends_G, right=True)
        row_N = self.row_N * len(ends_G) + level_N
        order_N = row_N.argsort(stable=True)
        counts_R = torch.bincount(row_N, minlength=len(self) * len(ends_G))
        return Code(self.values_N[order_N], self.latents_N[order_N], _starts(counts_R))

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
        """(F,) int64: entries of each latent that are not 0."""
        counts_F = torch.zeros(n_latents, dtype=torch.int64, device=self.latents_N.device)
        return counts_F.scatter_add_(0, self.latents_N, (self.values_N != 0).long())

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


class SparseCode:
    """The latents that fire on each token of a batch of any shape (...,).

    Two forms of the same: `rows` holds exactly what fires; `values` and `indices` are tensors (..., K), padded with coefficient 0
    to the length of the longest row. The padded form of a ragged code is made when it is first asked for.

    Args:
        values: (..., K) coefficients.
        indices: (..., K) int64, their latents, in no particular order. Those of coefficients of 0 mean nothing.

    Attributes:
        rows: :class:`Code` of the tokens, in the order of the flattened batch.
        lead: the shape (...,) of the batch.
    """

    rows: Code
    lead: tuple[int, ...]

    def __init__(self, values: Tensor, indices: Tensor) -> None:
        K = values.shape[-1]
        self.lead = tuple(values.shape[:-1])
        self.rows = Code.of(values.reshape(-1, K), indices.reshape(-1, K))

    @classmethod
    def of_rows(cls, rows: Code, lead: Sequence[int] | None = None) -> SparseCode:
        """The code of a batch of shape `lead` (default: one axis), given its rows."""
        code = cls.__new__(cls)
        code.rows, code.lead = rows, (len(rows),) if lead is None else tuple(lead)
        return code

    @property
    def values(self) -> Tensor:
        return self._padded[0]

    @property
    def indices(self) -> Tensor:
        return self._padded[1]

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        values_NK, indices_NK = self.rows.padded()
        shape = *self.lead, values_NK.shape[1]
        return values_NK.reshape(shape), indices_NK.reshape(shape)

    def __iter__(self) -> Iterator[Tensor]:
        """`values, indices = code`."""
        return iter(self._padded)

    def fired(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row (of the flattened batch), latent and coefficient of every entry that is not 0, each (N,)."""
        keep_N = self.rows.values_N != 0
        return self.rows.row_N[keep_N], self.rows.latents_N[keep_N], self.rows.values_N[keep_N]

    def dense(self, n_latents: int) -> Tensor:
        """The same code as one (..., n_latents) tensor; padding may repeat the index of a real value."""
        return self.rows.dense(n_latents).reshape(*self.lead, n_latents)

    def __repr__(self) -> str:
        return f"SparseCode(shape={self.lead}, entries={len(self.rows.latents_N)})"


def _starts(counts_B: Tensor) -> Tensor:
    return torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])
