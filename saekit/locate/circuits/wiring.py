"""The wiring of a model: which objects write to the residual stream, which read it, and the edges between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saekit.errors import UnknownRef, UnsupportedModel
from saekit.names.edge import Edge
from saekit.names.ref import Ref
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

QKV = ("q", "k", "v")


class Layer(NamedTuple):
    """The place of one layer in the wiring.

    Attributes:
        before: number of writers before the layer.
        n_heads: its heads are writers `before` to `before + n_heads - 1`.
        mlp: its MLP's writer; None in a layer without an MLP.
        first_reader: its q readers begin here, then come k and v, `n_heads` each.
        mlp_reader: its MLP's reader, or None.
        parallel: the MLP does not read the heads of its own layer.
    """

    before: int
    n_heads: int
    mlp: int | None
    first_reader: int
    mlp_reader: int | None
    parallel: bool

    @property
    def heads(self) -> slice:
        """The writers that are heads of the layer."""
        return slice(self.before, self.before + self.n_heads)

    @property
    def attention_readers(self) -> range:
        """The q, k and v readers of the layer."""
        return range(self.first_reader, self.first_reader + 3 * self.n_heads)

    @property
    def read_by_mlp(self) -> int:
        """Number of writers before the MLP's input."""
        return self.before if self.parallel else self.before + self.n_heads


@dataclass(frozen=True, eq=False)
class Wiring:
    """U writers, V readers, and which of them an edge joins.

    Writers are the embedding (the input of the first block), heads (z W_O) and MLPs, in the order of computation: 1 + L (H + 1)
    for L layers with H heads. Readers are the inputs of the queries, keys and values of every head, those of the MLPs, and that
    of the logits: L (3 H + 1) + 1. Where heads share keys and values, each query head has a key and a value reader of its own.

    Attributes:
        writers: their refs.
        readers: their refs.
        possible_UV: bool; True where the writer comes before the reader.
        layers: where the objects of each layer are.
    """

    writers: tuple[Ref, ...]
    readers: tuple[Ref, ...]
    possible_UV: Tensor
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, lm: LanguageModel) -> Wiring:
        """The wiring of a model.

        Raises:
            UnsupportedModel: its residual stream is not the sum of what heads and MLPs write: the outputs of its blocks are
                normalised again (Gemma 2 and 3, OLMo 2), a layer has other parts, or the stream is scaled.
        """
        writers, readers = [Ref.whole("embed")], list[Ref]()
        before, layers = list[int](), list[Layer]()
        for layer in range(lm.n_layers):
            check_layer(lm, layer)
            first, heads = len(writers), lm.token_shape(Site("heads", layer))[0]
            has_mlp = lm.reason(Site("mlp_out", layer)) is None
            parallel = lm.reason(Site("resid_mid", layer)) is not None
            row = Layer(first, heads, first + heads if has_mlp else None, len(readers), None, parallel)
            readers += [Ref.head(layer, head, kind) for kind in QKV for head in range(heads)]
            before += [first] * 3 * heads
            writers += [Ref.head(layer, head) for head in range(heads)]
            if has_mlp:
                row = row._replace(mlp_reader=len(readers))
                readers.append(Ref.whole(f"mlp_in.{layer}"))
                before.append(row.read_by_mlp)
                writers.append(Ref.whole(f"mlp_out.{layer}"))
            layers.append(row)
        readers.append(Ref.whole("logits"))
        before.append(len(writers))
        possible_UV = torch.arange(len(writers))[:, None] < torch.tensor(before)
        return cls(tuple(writers), tuple(readers), possible_UV, tuple(layers))

    @cached_property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.possible_UV.sum())

    @cached_property
    def edge_places(self) -> Tensor:
        """(E, 2) the writer and the reader of each edge, ordered by reader, then by writer."""
        return self.possible_UV.T.nonzero().flip(1)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The edges, in the order of :attr:`edge_places`."""
        return tuple(self.edge(int(u), int(v)) for u, v in self.edge_places)

    def edge(self, u: int, v: int, position: str | None = None) -> Edge:
        """The edge from writer `u` to reader `v`, at all positions or at one."""
        return Edge(self.writers[u].at(position), self.readers[v].at(position))

    def place(self, edge: Edge | str) -> tuple[int, int]:
        """The numbers of the writer and the reader of an edge; its positions are ignored.

        Raises:
            UnknownRef: the model has no such edge.
        """
        edge = Edge.parse(edge)
        u, v = self._writer_of.get(edge.source.at(None)), self._reader_of.get(edge.target.at(None))
        if u is None or v is None or not self.possible_UV[u, v]:
            raise UnknownRef(f"The model has no edge {edge}.", "Edges run from an earlier object: 'head:0.1->q:1.2'.")
        return u, v

    def written_by(self, v: int) -> int | None:
        """The writer of the object that reader `v` belongs to: its head or MLP; None for the logits."""
        return self._node_of[v]

    @cached_property
    def readers_of(self) -> dict[int, tuple[int, ...]]:
        """For each writer, the readers of the same object; () for the embedding."""
        found: dict[int, list[int]] = {u: [] for u in range(len(self.writers))}
        for v, u in enumerate(self._node_of):
            if u is not None:
                found[u].append(v)
        return {u: tuple(readers) for u, readers in found.items()}

    @cached_property
    def _writer_of(self) -> dict[Ref, int]:
        return {ref: u for u, ref in enumerate(self.writers)}

    @cached_property
    def _reader_of(self) -> dict[Ref, int]:
        return {ref: v for v, ref in enumerate(self.readers)}

    @cached_property
    def _node_of(self) -> list[int | None]:
        found: list[int | None] = [None] * len(self.readers)
        for row in self.layers:
            for i, v in enumerate(row.attention_readers):
                found[v] = row.before + i % row.n_heads
            if row.mlp_reader is not None:
                found[row.mlp_reader] = row.mlp
        return found


def check_layer(lm: LanguageModel, layer: int) -> None:
    """Raise UnsupportedModel where what a layer's heads and MLP write does not add up to the stream."""
    layout, hint = lm.layouts[layer], "Locate single objects instead, for example with the method attribution."
    for kind in ("heads", "attn_out"):
        if why := lm.reason(Site(kind, layer)):
            raise UnsupportedModel(f"{lm.name} has no circuits of heads and MLPs: {why}.", hint)
    if layout.others or "resid_pre" in layout.scales or _streams(lm, layer):
        raise UnsupportedModel(
            f"{lm.name} has no circuits of heads and MLPs: layer {layer} adds something else to the stream, or scales it.",
            hint,
        )
    if not f"{layout.paths.o}.".startswith(f"{layout.paths.attn_out}."):
        raise UnsupportedModel(
            f"{lm.name} has no circuits of heads and MLPs: layer {layer} normalises the output of its attention, "
            "so that the writes of single heads do not add up.",
            hint,
        )
    if layout.paths.pattern:
        raise UnsupportedModel(
            f"{lm.name} has no circuits of heads and MLPs: it computes its attention itself, "
            "so that no head can be given queries, keys and values of its own.",
            hint,
        )


def _streams(lm: LanguageModel, layer: int) -> str:
    """How the residual stream is split into parts, "" where it is one."""
    point = lm.hook_point(Site("resid_pre", layer))
    return "" if point is None else point.view.streams
