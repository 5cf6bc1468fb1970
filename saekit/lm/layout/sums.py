"""Which sum of tensors another tensor is: the coefficients with which a block adds its branches to the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

Scale = float | Tensor
"""A factor for all coordinates, or one for each: (d_model,)."""

# A few roundings of the type, relative to each element.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Sums:
    """Least-squares fits of `target` (N, d) by sums of named terms (N, d), from the products of all pairs.

    Each element is weighted by its own size, so that rounding of a few large coordinates does not hide the others.

    Args:
        constant: the sum may have a constant vector besides.
    """

    def __init__(self, target: Tensor, terms: dict[str, Tensor], constant: bool = False) -> None:
        self._tolerance = _TOLERANCE.get(target.dtype, 1e-2)
        self._names = {name: n for n, name in enumerate(terms)}
        rows = [_flat(term) for term in terms.values()]
        target = _flat(target)
        size = target.abs() + 1e-3 * target.square().mean().sqrt() + 1e-30
        for term in rows[:1]:  # the stream before: what was added may cancel it
            size = size + term.abs()
        every = [*rows, target]
        if constant:
            every, size = [row - row.mean(0) for row in every], size.mean(0)
        self._weighted = torch.stack([row / size for row in every])
        flat = self._weighted.flatten(1)
        self._whole = flat @ flat.T

    @cached_property
    def _by_channel(self) -> Tensor:
        """(d, a, b) the products of all pairs in each coordinate."""
        return torch.einsum("and,bnd->dab", self._weighted, self._weighted)

    def fit(self, names: Sequence[str]) -> list[Scale] | None:
        """The coefficients of the terms, none of them zero, or None if their sum is not the target.

        One factor for each term if that is enough, else one for each coordinate.
        """
        index = [*(self._names[name] for name in names), len(self._names)]
        whole = self._whole[index][:, index]
        if (found := _solve(whole[None], self._tolerance)) is not None:
            return [_round(float(c)) for c in found[0]]
        return None

    def fit_by_channel(self, names: Sequence[str]) -> list[Scale] | None:
        """As `fit`, with a factor for each coordinate."""
        index = torch.tensor([*(self._names[name] for name in names), len(self._names)])
        if (found := _solve(self._by_channel[:, index][:, :, index], self._tolerance)) is None:
            return None
        columns = [column.float() for column in found.T]
        return [_round(float(c[0])) if bool(torch.allclose(c, c[0], rtol=1e-4)) else c for c in columns]

    def first(self, start: str, choices: Iterable[Sequence[str]]) -> tuple[list[str], list[Scale]] | None:
        """Names from `choices` (one of each, "" for none) which, with `start`, sum to the target; and the coefficients.

        As many names as possible; then a sum without factors, because a norm of tiny vectors is nearly a factor; then the first.
        """
        combinations = sorted(product(*choices), key=lambda names: names.count(""))
        for fit, most in ((self.fit, len(combinations)), (self.fit_by_channel, 16)):
            found: tuple[list[str], list[Scale]] | None = None
            for names in combinations[:most]:
                if found is not None and names.count("") > found[0].count(""):
                    break
                used = [name for name in names if name]
                if len(set(used)) < len(used) or (scales := fit([start, *used])) is None:
                    continue
                if all(isinstance(scale, float) and scale == 1 for scale in scales):
                    return list(names), scales
                found = found or (list(names), scales)
            if found is not None:
                return found
        return None


def _solve(gram: Tensor, tolerance: float) -> Tensor | None:
    """(C, n) coefficients from (C, n + 1, n + 1) products, whose last row and column are the target's."""
    A, b, bb = gram[:, :-1, :-1], gram[:, :-1, -1], gram[:, -1, -1]
    scale = A.diagonal(dim1=1, dim2=2).clamp_min(1e-60).rsqrt()
    unit = A * scale[:, :, None] * scale[:, None, :]
    if float(torch.linalg.eigvalsh(unit)[:, 0].min()) < 1e-9:
        return None  # two terms are one
    x = torch.linalg.solve(unit, b * scale)
    rest = bb - 2 * (x * b * scale).sum(1) + torch.einsum("ca,cab,cb->c", x, unit, x)
    if not bool((rest.clamp_min(0).sqrt() <= tolerance * bb.sqrt() + 1e-30).all()):
        return None
    if not bool((x.abs() > 0.5 * tolerance * bb.sqrt()[:, None]).all()):
        return None  # a term that adds nothing
    return x * scale


def _round(c: float) -> float:
    return 1.0 if abs(c - 1) < 1e-3 else c


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to("cpu", torch.float64)
