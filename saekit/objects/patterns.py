"""Attention patterns query by query: the rows of heads, and single entries."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from saekit.errors import InterventionError, UnknownSite
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects.spaces import Heads, Space, Units, wide

_MOST_KEYS = 1 << 20


class PatternRows(Heads):
    """The attention of heads at single queries. `h` is (N, heads, keys); the coefficient of a head is its row, a number for each
    key, as many as the context has."""

    def __init__(self, site: Site, n_heads: int) -> None:
        super().__init__(site, n_heads, -1)

    def unit_of(self, head: int, key: int | None) -> int:
        """The number of a head here, or of its entry for a key in :class:`PatternEntries`."""
        return head if key is None else key * self.n_units + head

    def vectors(self, units: Units | None = None) -> NoReturn:
        raise UnknownSite(f"The entries of {self.site} are no vectors.", f"Use v.{self.site.layer} or heads.{self.site.layer}.")

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        assert self.site.layer is not None, "patterns have a layer"
        return Ref.head(self.site.layer, unit, "pattern")


class PatternEntries(Space):
    """Single entries of the rows of heads: how much the query attends to the token at a position.

    `h` is (N, heads, keys) with the key of position p in column p. Entry (head, key) is unit key * heads + head.
    """

    label = "entry of a pattern"

    def __init__(self, rows: PatternRows) -> None:
        super().__init__(rows.site, rows.n_units * _MOST_KEYS, (rows.n_units, -1))
        self.heads = rows.n_units

    def _index(self, h: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        if units is None:
            raise InterventionError(f"All entries of {self.site} cannot be read at once.", "Name their keys.")
        index = self.check(units, h.device)
        return index % self.heads, index // self.heads

    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        head, key = self._index(h, units)
        here = key < h.shape[-1]  # in a step of decoding, later keys are not there yet
        return (h[..., head, key.clamp_max(h.shape[-1] - 1)] * here).to(wide(h.dtype))

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        head, key = self._index(h, units)
        here = key < h.shape[-1]
        values = torch.as_tensor(values, device=h.device).to(h.dtype).expand(*h.shape[:-2], len(head))
        new = h.clone()
        new[..., head[here], key[here]] = values[..., here]
        return new

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        return self.read(grad_h, units)

    def vectors(self, units: Units | None = None) -> NoReturn:
        raise UnknownSite(f"The entries of {self.site} are no vectors.", f"Use v.{self.site.layer} or heads.{self.site.layer}.")

    def ref(self, unit: int) -> NoReturn:
        raise UnknownSite(f"An entry of {self.site} has a name with its query only.", "Use Ref.entry(layer, head, query, key).")
