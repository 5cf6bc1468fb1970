"""Spaces: interpretable coordinates at a site, with one interface for raw objects and for the features of an SAE.

A tensor `h` is an activation at the space's site, of shape (..., *token_shape): any leading dimensions, then the shape of one
token, which is (d,) at most sites and (heads, d_head) at `heads`, `q`, `k` and `v`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from saekit.errors import InterventionError, UnknownRef, UnknownSite
from saekit.names.ref import Ref
from saekit.names.site import KINDS, Site
from saekit.plugins import resolve

Units = Sequence[int] | Tensor
# Maps vectors (n, width) at a site to what they write to the residual stream, (n, d_model).
ToResidual = Callable[[Tensor], Tensor]
_ROUNDED = 16.0
"""Singular values below so many units of rounding, relative to the largest, are rounding."""


class Space(ABC):
    """Units at a site that can be read and set one by one.

    The coefficient of a unit has shape `unit_shape`: () for features, neurons and coordinates; (d_head,) for attention heads,
    whose value is a vector. Coefficients are float32 for every model except float64 models, where they are float64.
    """

    label: str
    unit_shape: tuple[int, ...] = ()
    relative = False
    """Writes add the difference from the current coefficients, which must therefore be read; else they replace numbers."""

    def __init__(self, site: Site, n_units: int, token_shape: tuple[int, ...], to_residual: ToResidual | None = None) -> None:
        """Args:
        site: where units are read.
        n_units: number of units.
        token_shape: shape of one token's activation at `site`.
        to_residual: maps vectors at the site to what they write to the residual stream; None if they do not write to it directly.
        """
        self.site = site
        self.site_out = site
        self.n_units = n_units
        self.token_shape = token_shape
        self._to_residual = to_residual

    @abstractmethod
    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        """Coefficients of `units` (all by default): (..., n, *unit_shape)."""

    @abstractmethod
    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        """`h` with the coefficients of `units` set to `values`. Nothing else of `h` changes.

        Args:
            h: (..., *token_shape).
            units: n different units.
            values: anything that broadcasts to (..., n, *unit_shape).
            current: the result of `read(h, units)`, if it has been computed already.
        """

    def read_each(self, h: Tensor, units_Nk: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Coefficients of other units in each row: (N, k, *unit_shape).

        Args:
            h: (N, *token_shape).
            units_Nk: the units of each row.
            out: the activation at `site_out`, where that is another site.
        """
        return self._by_units(units_Nk, lambda index, units: self.read(h[index], units))

    def write_each(self, h: Tensor, units_Nk: Tensor, values: Tensor, *, current: Tensor | None = None) -> Tensor:
        """`h` (N, *token_shape) at `site_out` with the coefficients of other units set in each row.

        Args:
            units_Nk: the units of each row, different ones.
            values: broadcasts to (N, k, *unit_shape).
            current: what :meth:`read_each` returned, needed if the space is `relative`.
        """
        values = values.expand(*units_Nk.shape, *values.shape[2:])

        def written(index: Tensor, units: Tensor) -> Tensor:
            return self.write(h[index], units, values[index], current=None if current is None else current[index])

        return self._by_units(units_Nk, written)

    def _by_units(self, units_Nk: Tensor, made: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What `made` returns for rows that have the same units, in the order of the rows."""
        different, which_N = units_Nk.unique(dim=0, return_inverse=True)
        groups = [(which_N == number).nonzero().squeeze(1) for number in range(len(different))]
        parts = [made(index, units) for index, units in zip(groups, different)]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    @abstractmethod
    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        """The gradient of a metric with respect to the coefficients of `units` as :meth:`write` sets them: (..., n, *unit_shape).

        Args:
            grad_h: the gradient of the metric with respect to the activation at `site_out`, in its shape.
            h: the activation at `site`, (..., *token_shape). For an SAE that normalises its input it gives the scale.
        """

    @abstractmethod
    def vectors(self, units: Units | None = None) -> Tensor:
        """The vectors that a coefficient of 1 adds to the activation at `site_out`: (n, *unit_shape, width)."""

    @abstractmethod
    def ref(self, unit: int) -> Ref:
        """The name of a unit."""

    def ref_at(self, unit: int, position: int | str | None) -> Ref:
        """The name of a unit at one position, or at all positions for None."""
        return self.ref(unit).at(position)

    @property
    def key(self) -> Hashable:
        """Equal for two objects that are the same space of one model, whatever their units are called."""
        return type(self), self.site

    def add(self, h: Tensor, units: Units, amounts: Tensor | float) -> Tensor:
        """`h` with `amounts`, broadcast to (..., n, *unit_shape), added to the coefficients of `units`."""
        return self.write(h, units, self.read(h, units) + amounts)

    def directions(self, units: Units | None = None) -> Tensor:
        """The vectors that a coefficient of 1 writes to the residual stream: (n, *unit_shape, d_model).

        For a feature this is its decoder row, for a neuron its vector of the down projection, for a head its (d_head, d_model)
        slice of the output projection, and for a residual coordinate a unit vector. If a block normalises its outputs (Gemma 2
        and 3), the vectors are those before that norm.

        Raises:
            UnknownSite: the site does not write to the residual stream directly (q, k, v, mlp_in).
        """
        if self._to_residual is None:
            raise UnknownSite(f"{self.site_out} does not write to the residual stream directly.", "Use vectors() instead.")
        written = []
        for some in self.check(units).split(1024):  # a few at a time, because raw units are one-hot vectors here
            vectors = self.vectors(some)
            written.append(self._to_residual(vectors.flatten(0, -2)).unflatten(0, vectors.shape[:-1]))
        return torch.cat(written)

    def lengths(self, units: Units, norm: float) -> Tensor:
        """Lengths (n,) of the vectors that a coefficient of 1 adds to an activation of length `norm`, for units with numbers."""
        return self.vectors(units).norm(dim=-1)

    def check(self, units: Units | None, device: torch.device | None = None) -> Tensor:
        """Units as an index tensor (n,).

        Raises:
            UnknownRef: a unit does not exist.
        """
        if units is None:
            return torch.arange(self.n_units, device=device)
        if isinstance(units, list) and all(type(unit) is int and 0 <= unit < self.n_units for unit in units):
            return torch.tensor(units, dtype=torch.long, device=device)
        index = torch.as_tensor(units, dtype=torch.long).reshape(-1).cpu()
        wrong = index[(index < 0) | (index >= self.n_units)]
        if wrong.numel():
            raise UnknownRef(
                f"There is no {self.label} {int(wrong[0])} at {self.site}: it has {self.n_units}.",
                f"Choose one from 0 to {self.n_units - 1}.",
            )
        return index if device is None else index.to(device)

    def _check_written(self, units: Units, device: torch.device) -> Tensor:
        index = self.check(units)
        different = len(set(units)) if isinstance(units, list) else index.unique().numel()
        if different != index.numel():
            raise InterventionError(f"A {self.label} at {self.site} is written twice at once.", "Name each unit once.")
        return index.to(device)

    def _flat(self, h: Tensor) -> Tensor:
        return h.flatten(-len(self.token_shape)) if len(self.token_shape) > 1 else h


class Coordinates(Space):
    """The numbers of an activation: neurons, or the coordinates of any other site, counted flat."""

    def __init__(self, site: Site, token_shape: tuple[int, ...], to_residual: ToResidual | None = None) -> None:
        super().__init__(site, prod(token_shape), token_shape, to_residual)
        row = KINDS[site.kind]
        # The numbers of `heads` can be read flat too, but these are not heads.
        own = resolve(row.space) is Coordinates
        self._ref, self.label = (row.ref, row.unit) if own else ("residual", "coordinate")

    @classmethod
    def of(cls, site: Site, token_shape: tuple[int, ...], to_residual: ToResidual | None = None) -> Coordinates:
        """The space of a site whose kind has this class as its raw space."""
        return cls(site, token_shape, to_residual)

    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        flat = self._flat(h)
        picked = flat if units is None else flat.index_select(-1, self.check(units, h.device))
        return picked.to(wide(h.dtype))

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        index = self._check_written(units, h.device)
        flat = self._flat(h)
        values = torch.as_tensor(values, device=h.device).to(h.dtype).expand(*flat.shape[:-1], len(index))
        return flat.index_copy(-1, index, values).reshape(h.shape)

    def write_each(self, h: Tensor, units_Nk: Tensor, values: Tensor, *, current: Tensor | None = None) -> Tensor:
        return self._flat(h).scatter(-1, units_Nk, values.to(h.dtype).expand(units_Nk.shape)).reshape(h.shape)

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        return self.read(grad_h, units)

    def vectors(self, units: Units | None = None) -> Tensor:
        return one_hot(self.check(units), self.n_units).float()

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        return Ref(self._ref, unit, self.site, self.site.layer)


class Heads(Space):
    """Attention heads. The coefficient of a head is its output z, a vector of d_head numbers."""

    label = "head"

    def __init__(self, site: Site, n_heads: int, d_head: int, to_residual: ToResidual | None = None) -> None:
        super().__init__(site, n_heads, (n_heads, d_head), to_residual)
        self.unit_shape = (d_head,)

    @classmethod
    def of(cls, site: Site, token_shape: tuple[int, ...], to_residual: ToResidual | None = None) -> Self:
        """The space of a site whose kind has this class as its raw space."""
        n_heads, d_head = token_shape
        return cls(site, n_heads, d_head, to_residual)

    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        return (h if units is None else h.index_select(-2, self.check(units, h.device))).to(wide(h.dtype))

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        index = self._check_written(units, h.device)
        values = torch.as_tensor(values, device=h.device).to(h.dtype).expand(*h.shape[:-2], len(index), h.shape[-1])
        return h.index_copy(-2, index, values)

    def write_each(self, h: Tensor, units_Nk: Tensor, values: Tensor, *, current: Tensor | None = None) -> Tensor:
        return scatter_vectors(h, units_Nk, values)

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        return self.read(grad_h, units)

    def vectors(self, units: Units | None = None) -> Tensor:
        (d_head,) = self.unit_shape
        numbers = self.check(units)[:, None] * d_head + torch.arange(d_head)
        return one_hot(numbers, self.n_units * d_head).float()

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        assert self.site.layer is not None, "heads have a layer"
        return Ref.head(self.site.layer, unit)


class Directions(Space):
    """Directions at any site, given as vectors.

    The coefficients are those of a least-squares fit of `h` (`h` times the pseudo-inverse). Setting several to zero therefore
    removes their whole span from `h`, also where they overlap; for orthogonal directions each is h.v / |v|^2.
    """

    label = "direction"
    relative = True

    def __init__(
        self, site: Site, vectors_ND: Tensor, token_shape: tuple[int, ...], to_residual: ToResidual | None = None
    ) -> None:
        super().__init__(site, len(vectors_ND), token_shape, to_residual)
        if vectors_ND.shape[1:] != (prod(token_shape),):
            raise InterventionError(
                f"A direction of {vectors_ND.shape[-1]} numbers does not fit {site}, which has {prod(token_shape)} a token."
            )
        self._vectors_ND = vectors_ND.to(wide(vectors_ND.dtype))
        self._inverse_DN = pseudo_inverse(self._vectors_ND).to(self._vectors_ND.dtype)

    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        precision = wide(h.dtype)
        flat, inverse = self._flat(h).to(precision), self._inverse_DN.to(h.device, precision)
        return flat @ (inverse if units is None else inverse[:, self.check(units, h.device)])

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        self._check_written(units, h.device)
        return self.add(h, units, values - (self.read(h, units) if current is None else current))

    def add(self, h: Tensor, units: Units, amounts: Tensor | float) -> Tensor:
        return add_vectors(h, amounts, self.vectors(units), len(self.token_shape))

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        return along(grad_h, self.vectors(units), len(self.token_shape))

    def vectors(self, units: Units | None = None) -> Tensor:
        return self._vectors_ND[self.check(units, self._vectors_ND.device)]

    def ref(self, unit: int) -> Ref:
        raise UnknownRef("A direction that is given as a vector has no name.", "Keep it in the intervention that uses it.")


def pseudo_inverse(vectors_ND: Tensor) -> Tensor:
    """(D, N) float64 that gives the coefficients of a least-squares fit by N vectors.

    A vector that is another one's multiple, or the sum of others, is so up to rounding in the dtype of the vectors. What rounding
    leaves of it is no direction. The vectors are compared at equal lengths.
    """
    lengths_N = vectors_ND.double().norm(dim=1)
    lengths_N = torch.where(lengths_N > 0, lengths_N, 1.0)
    smallest = _ROUNDED * torch.finfo(vectors_ND.dtype).eps
    return torch.linalg.pinv(vectors_ND.double() / lengths_N[:, None], rtol=smallest) / lengths_N


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which changes are computed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def scatter_vectors(h: Tensor, units_Nk: Tensor, values: Tensor) -> Tensor:
    """`h` (N, units, d) with the vectors of other units set in each row to `values`, which broadcasts to (N, k, d)."""
    shape = (*units_Nk.shape, h.shape[-1])
    return h.scatter(-2, units_Nk[..., None].expand(shape), values.to(h.dtype).expand(shape))


def along(grad_h: Tensor, vectors_NW: Tensor, token_dims: int) -> Tensor:
    """(..., N) the gradient of the amounts that :func:`add_vectors` takes, computed in at least float32."""
    precision = wide(grad_h.dtype)
    flat = grad_h.flatten(-token_dims) if token_dims > 1 else grad_h
    return flat.to(precision) @ vectors_NW.to(grad_h.device, precision).T


def add_vectors(h: Tensor, amounts: Tensor | float, vectors_NW: Tensor, token_dims: int) -> Tensor:
    """h + amounts @ vectors, computed in at least float32, in the dtype and shape of `h`; exactly `h` for amounts of 0."""
    precision = wide(h.dtype)
    flat = h.flatten(-token_dims) if token_dims > 1 else h
    vectors_NW = vectors_NW.to(h.device, precision)
    amounts = torch.as_tensor(amounts, device=h.device).to(precision).expand(*flat.shape[:-1], len(vectors_NW))
    return (flat.to(precision) + amounts @ vectors_NW).to(h.dtype).reshape(h.shape)
