"""Rows of an attribution graph: which sources reach a target, and how strongly. Only the largest entries of a row are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saekit.locate.graphs.cut import Cut
from saekit.locate.graphs.replacement import Active, Replacement
from saekit.names.site import Site

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass
class Sources:
    """What rows are sums of, in the order of columns: active latents, then errors (layer by layer), then tokens.

    Attributes:
        replacement: the replacement model.
        active: n latents.
        errors: by mlp_out, (T, d).
        embedded_TD: resid_pre.0, what the tokens bring.
    """

    replacement: Replacement
    active: Active
    errors: dict[Site, Tensor]
    embedded_TD: Tensor

    @property
    def T(self) -> int:
        return len(self.embedded_TD)

    def __len__(self) -> int:
        return len(self.active) + (len(self.errors) + 1) * self.T

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites where sources enter the residual stream."""
        return (Site("resid_pre", 0), *self.replacement.written)

    @torch.no_grad()
    def rows(self, gradients: dict[Site, Tensor]) -> Tensor:
        """(K, S) entries of K rows: the gradient (K, T, d) at the site of each source, times what the source writes there."""
        embedding, *written = self.sites
        K = len(gradients[embedding])
        out_KS = torch.zeros(K, len(self))
        n, T = len(self.active), self.T
        for number, reader in enumerate(self.replacement.readers):
            start, end = (int(self.active.start_R1[each]) for each in (number, number + 1))
            # Latents of a reader are in the order of positions; those of one token share its gradient.
            position_P, count_P = self.active.position_n[start:end].unique_consecutive(return_counts=True)
            ends_P = start + count_P.cumsum(0)
            for position, last, count in zip(position_P.tolist(), ends_P.tolist(), count_P.tolist()):
                own = slice(last - count, last)
                latent_n, value_n = self.active.latent_n[own], self.active.value_n[own]
                for site, columns in reader.writes:
                    grad_KD = gradients[site][:, position].float()
                    vectors = reader.dictionary.W_dec[latent_n, columns].to(grad_KD)
                    out_KS[:, own] += (grad_KD @ vectors.T).cpu() * value_n
        for place, site in enumerate(written):
            out_KS[:, n + place * T : n + (place + 1) * T] = torch.einsum(
                "ktd,td->kt", gradients[site].float(), self.errors[site]
            ).cpu()
        out_KS[:, n + len(written) * T :] = torch.einsum("ktd,td->kt", gradients[embedding].float(), self.embedded_TD).cpu()
        return out_KS


@dataclass
class Rows:
    """Sparse rows of a growing matrix.

    Attributes:
        share: each row keeps its largest entries until they make up this share of its sum of magnitudes.
        most: at most this many entries of a row.
        columns, entries: int32 column numbers and float32 values of each row.
        totals: (sum, sum of magnitudes) of each whole row, before anything was dropped.
    """

    share: float = 0.99
    most: int = 8192
    columns: list[Any] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    totals: list[tuple[float, float]] = field(default_factory=list)

    def add(self, rows_KS: Tensor) -> None:
        """Append rows."""
        for row in rows_KS.numpy():
            size = np.abs(row)
            total = float(size.sum(dtype=np.float64))
            chosen = np.flatnonzero(size)
            if len(chosen) > self.most:
                chosen = chosen[np.argpartition(size[chosen], -self.most)[-self.most :]]
            if self.share < 1 and len(chosen):
                chosen = chosen[np.argsort(-size[chosen], kind="stable")]
                reached = np.cumsum(size[chosen], dtype=np.float64)
                chosen = chosen[: int(np.searchsorted(reached, self.share * total)) + 1]
            chosen = np.sort(chosen)
            self.columns.append(chosen.astype(np.int32))
            self.entries.append(row[chosen].astype(np.float32))
            self.totals.append((float(row.sum(dtype=np.float64)), total))

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the entries and their column numbers."""
        return sum(each.nbytes for each in (*self.columns, *self.entries))

    def matrix(self, width: int) -> csr_matrix:
        """All rows as one matrix (rows, width)."""
        from scipy.sparse import csr_matrix

        starts = np.concatenate([[0], np.cumsum([len(each) for each in self.entries])])
        empty = [np.empty(0, np.float32)]
        columns = np.concatenate(self.columns or [np.empty(0, np.int32)])
        return csr_matrix((np.concatenate(self.entries or empty), columns, starts), shape=(len(self), width))


def feature_targets(cut: Cut, replacement: Replacement, active: Active, chosen_K: Tensor) -> Tensor:
    """(K,) pre-activations, without their bias, of some active latents, in the graph of the pass."""
    parts, places = [], []
    reader_K = active.reader_n[chosen_K]
    for number in reader_K.unique().tolist():
        where = (reader_K == number).nonzero()[:, 0]
        own = chosen_K[where]
        reader = replacement.readers[number]
        x = cut.arrived[reader.read].flatten(1)
        rows = x[active.position_n[own].to(x.device)]
        parts.append((rows * reader.encoders(active.latent_n[own]).to(rows)).sum(-1))
        places.append(where)
    return torch.cat(parts)[torch.cat(places).argsort().to(parts[0].device)]
