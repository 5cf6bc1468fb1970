"""Spaces whose coefficients are vectors: q, k and v of heads, attention patterns, and whole activations."""

from __future__ import annotations

from math import prod
from typing import NoReturn

import torch
from torch import Tensor

from saekit.errors import UnknownSite
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects.spaces import Heads, Space, ToResidual, Units, scatter_vectors, wide


class HeadVectors(Heads):
    """The query, key or value vectors of attention heads. With grouped-query attention, k and v have fewer heads than q."""

    @property
    def label(self) -> str:  # type: ignore[override]
        return {"q": "query", "k": "key", "v": "value"}.get(self.site.kind, self.site.kind) + " vector"

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        assert self.site.layer is not None, "heads have a layer"
        return Ref.head(self.site.layer, unit, self.site.kind)


class Patterns(Space):
    """The attention patterns of heads. The coefficient of a head at a query is its row of the pattern, a number for each key.

    An activation `h` is (..., heads, queries, keys), and coefficients are (..., queries, n, keys). `unit_shape` is (-1,), because
    the number of keys changes with the context. A row that is written need not sum to 1.
    """

    label = "head"

    def __init__(self, site: Site, n_heads: int) -> None:
        super().__init__(site, n_heads, (n_heads, -1))
        self.unit_shape = (-1,)

    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        picked = h if units is None else h.index_select(-3, self.check(units, h.device))
        return picked.transpose(-3, -2).to(wide(h.dtype))

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        index = self._check_written(units, h.device)
        shape = (*h.shape[:-3], h.shape[-2], len(index), h.shape[-1])
        values = torch.as_tensor(values, device=h.device).to(h.dtype).expand(shape)
        return h.index_copy(-3, index, values.transpose(-3, -2))

    def write_each(self, h: Tensor, units_Nk: Tensor, values: Tensor, *, current: Tensor | None = None) -> Tensor:
        """As in other spaces, of single queries: `h` is (N, heads, keys), and `values` broadcasts to (N, k, keys)."""
        return scatter_vectors(h, units_Nk, values)

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        return self.read(grad_h, units)

    def vectors(self, units: Units | None = None) -> NoReturn:
        raise UnknownSite(f"The entries of {self.site} are no vectors.", f"Use v.{self.site.layer} or heads.{self.site.layer}.")

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        assert self.site.layer is not None, "patterns have a layer"
        return Ref.head(self.site.layer, unit, "pattern")


class Whole(Space):
    """The activation at a site as one object: a residual state, the output of a block, or an input embedding."""

    label = "activation"

    def __init__(self, site: Site, token_shape: tuple[int, ...], to_residual: ToResidual | None = None) -> None:
        super().__init__(site, 1, token_shape, to_residual)
        self.unit_shape = token_shape

    @property
    def _place(self) -> int:
        """The dimension of a coefficient that counts units."""
        return -1 - len(self.token_shape)

    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        found = h.unsqueeze(self._place).to(wide(h.dtype))
        return found if units is None else found.index_select(self._place, self.check(units, h.device))

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        if not len(self._check_written(units, h.device)):
            return h
        shape = (*h.shape[: h.ndim - len(self.token_shape)], 1, *self.token_shape)
        return torch.as_tensor(values, device=h.device).to(h.dtype).expand(shape).squeeze(self._place).clone()

    def write_each(self, h: Tensor, units_Nk: Tensor, values: Tensor, *, current: Tensor | None = None) -> Tensor:
        return self.write(h, [0], values)

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        return self.read(grad_h, units)

    def vectors(self, units: Units | None = None) -> Tensor:
        width = prod(self.token_shape)
        return torch.eye(width).reshape(1, *self.token_shape, width)[self.check(units)]

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        return Ref.whole(self.site)


class Tokens(Whole):
    """The input embeddings of tokens. At a position, the object is called `position:4`."""

    def ref_at(self, unit: int, position: int | str | None) -> Ref:
        self.check([unit])
        return self.ref(unit) if position is None else Ref.token(position)
