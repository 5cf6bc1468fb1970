"""Which weights belong to an object: the rows and columns of the matrices of a head or of a neuron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from saekit.lm.layout.matrices import Matrix
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm.layout.layout import ModelLayout


class Part(NamedTuple):
    """Part of a matrix: some of its rows or columns, or all of it."""

    matrix: Matrix
    rows: Tensor | slice = slice(None)
    columns: Tensor | slice = slice(None)


def head_parts(lm: ModelLayout, layer: int, head: int, of_module: Mapping[nn.Module, Matrix]) -> Iterator[Part]:
    """The weights of a head: rows of the projections to q, k and v, and columns of the output projection.

    A key-value head that several heads share belongs to each of them. Where a norm stands between a projection and q or k, the
    projection is left out.

    Args:
        lm: the model.
        layer: of the head.
        head: its number among the heads of `heads`.
        of_module: the matrices by their module.
    """
    for kind in ("q", "k", "v", "heads"):
        site = Site(kind, layer)
        if lm.reason(site) is None:
            own = head * lm.token_shape(site)[0] // lm.size("n_heads", layer)  # the key-value head that it shares
            yield from vector_parts(lm, site, own, of_module)


def vector_parts(lm: ModelLayout, site: Site, unit: int, of_module: Mapping[nn.Module, Matrix]) -> Iterator[Part]:
    """Number `unit` of the vectors at q, k, v or heads: its rows of the projection, or the columns that take in heads."""
    point = lm.hook_point(site)
    if point is None or point.module not in of_module:
        return
    H, d = lm.token_shape(site)
    starts = point.view.starts or tuple(range(0, H * d, d))
    index = torch.arange(starts[unit], starts[unit] + d)
    yield Part(of_module[point.module], **{"columns" if site.kind == "heads" else "rows": index})


def neuron_parts(lm: ModelLayout, layer: int, unit: int | None, of_module: Mapping[nn.Module, Matrix]) -> Iterator[Part]:
    """The weights of a neuron: its column of the down projection, and its rows of the matrices beside it that make neurons.

    A matrix that makes the gates and the neurons together, one after the other, has two rows of each neuron.

    Args:
        lm: the model.
        layer: of the neuron.
        unit: its number; None: all neurons of the layer.
        of_module: the matrices by their module.

    Raises:
        UnknownSite: the layer has no neurons that one projection takes in.
    """
    down = lm.projection(lm.site(Site("neurons", layer)))
    F = lm.width(Site("neurons", layer))
    yield Part(of_module[down], columns=slice(None) if unit is None else torch.tensor([unit]))
    parent = next(module for module in lm.blocks[layer].modules() if down in module.children())
    for module in parent.children():
        matrix = of_module.get(module)
        if matrix is None or module is down or len(matrix.weight_OI) not in (F, 2 * F):
            continue
        if unit is None:
            yield Part(matrix)
        else:
            yield Part(matrix, rows=torch.arange(unit, len(matrix.weight_OI), F))
