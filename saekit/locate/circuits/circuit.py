"""Circuits: sets of edges, chosen by their scores."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.circuits.scores import EdgeScores
from saekit.locate.circuits.spans import Spans
from saekit.locate.circuits.wiring import Wiring
from saekit.names.edge import Edge
from saekit.names.ref import Ref

By = Literal["magnitude", "highest"]


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some of a model's edges.

    Attributes:
        wiring: the model's writers and readers.
        spans: the groups of positions.
        keep_UVS: bool, True for the edges of the circuit.
        scores_UVS: the scores by which they were chosen, where there are any.
    """

    wiring: Wiring
    spans: Spans
    keep_UVS: Tensor
    scores_UVS: Tensor | None = None

    @classmethod
    def of(cls, wiring: Wiring, edges: Iterable[Edge | str], spans: Spans | None = None) -> Circuit:
        """The circuit of some edges.

        Raises:
            UnknownRef: the model has no such edge.
            ConfigError: an edge names a position that is no group of `spans`.
        """
        spans = spans or Spans((None,), torch.zeros(1, 1, dtype=torch.long))
        keep = torch.zeros(*wiring.possible_UV.shape, len(spans), dtype=torch.bool)
        for edge in map(Edge.parse, edges):
            if edge.source.position not in spans.names:
                raise ConfigError(f"{edge} is at {edge.source.position or 'all positions'}, which is no group of positions here.")
            keep[*wiring.place(edge), spans.names.index(edge.source.position)] = True
        return cls(wiring, spans, keep)

    @classmethod
    def whole(cls, wiring: Wiring, spans: Spans) -> Circuit:
        """All edges."""
        return cls(wiring, spans, wiring.possible_UV[..., None].expand(-1, -1, len(spans)).clone())

    def __len__(self) -> int:
        return int(self.keep_UVS.sum())

    @property
    def share(self) -> float:
        """The share of the model's edges that are kept; an edge at one of S groups of positions counts as 1 / S."""
        return len(self) / (self.wiring.n_edges * len(self.spans))

    @cached_property
    def places(self) -> Tensor:
        """(n, 3) the writer, the reader and the group of positions of each edge, ordered by reader, writer and group."""
        return self.keep_UVS.transpose(0, 1).nonzero()[:, [1, 0, 2]]

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The edges, in the order of :attr:`places`."""
        names = self.spans.names
        return tuple(self.wiring.edge(u, v, names[s]) for u, v, s in self.places.tolist())

    @property
    def nodes(self) -> tuple[Ref, ...]:
        """The writers that an edge leaves or that own a reader with an edge, in the order of computation."""
        readers = self.keep_UVS.any(2).any(0).nonzero().flatten().tolist()
        found = set(self.keep_UVS.any(2).any(1).nonzero().flatten().tolist())
        found |= {u for v in readers if (u := self.wiring.written_by(v)) is not None}
        return tuple(self.wiring.writers[u] for u in sorted(found))

    def score(self, edge: Edge) -> float | None:
        """The score of an edge, or None where none is known."""
        if self.scores_UVS is None:
            return None
        return float(self.scores_UVS[*self.wiring.place(edge), self.spans.names.index(edge.source.position)])

    def without(self, other: Circuit) -> Circuit:
        """The edges that are not in another circuit."""
        return replace(self, keep_UVS=self.keep_UVS & ~other.keep_UVS)

    def complement(self) -> Circuit:
        """All other edges of the model."""
        return replace(self, keep_UVS=self.wiring.possible_UV[..., None] & ~self.keep_UVS)

    def pruned(self) -> Circuit:
        """Without dangling edges: those that no path of kept edges joins to both the embedding and the logits.

        Positions are ignored, because attention moves from one to another.
        """
        keep = self.keep_UVS.any(2)
        wiring = self.wiring
        U, V = keep.shape
        from_start, to_end = [False] * U, [False] * U
        from_start[0] = True
        for u in range(1, U):  # writers are in the order of computation
            from_start[u] = any(from_start[w] for v in wiring.readers_of[u] for w in keep[:, v].nonzero().flatten().tolist())
        for u in reversed(range(U)):
            targets = [wiring.written_by(v) for v in keep[u].nonzero().flatten().tolist()]
            to_end[u] = any(target is None or to_end[target] for target in targets)
        owner = [wiring.written_by(v) for v in range(V)]
        useful_V = torch.tensor([u is None or to_end[u] for u in owner])
        useful_UV = torch.tensor(from_start)[:, None] & useful_V
        return replace(self, keep_UVS=self.keep_UVS & useful_UV[..., None])


def each_removed(circuit: Circuit) -> Tensor:
    """(n, U, V, S) the edges of a circuit without each of them, in the order of :attr:`Circuit.places`."""
    places = circuit.places
    less = circuit.keep_UVS.expand(len(places), *circuit.keep_UVS.shape).clone()
    less[torch.arange(len(places)), *places.T] = False
    return less


def strengths(scores: EdgeScores, by: By = "magnitude") -> Tensor:
    """(U, V, S) what edges are chosen by: the magnitude of their mean scores, or the scores; minus infinity without an edge.

    Raises:
        ConfigError: `by` is neither.
    """
    if by not in ("magnitude", "highest"):
        raise ConfigError(f"Edges cannot be chosen by {by!r}.", "Choose by magnitude or highest.")
    mean = scores.mean_UVS.double()
    found = mean.abs() if by == "magnitude" else mean
    return found.masked_fill(~scores.wiring.possible_UV[..., None], -torch.inf)


def top(scores: EdgeScores, n: int, by: By = "magnitude") -> Circuit:
    """The `n` strongest edges, without those that dangle. Equal scores are taken in the order of readers, then writers.

    Raises:
        ConfigError: `n` is not between 0 and the number of edges, or `by` is unknown.
    """
    _check_count(scores, n)
    flat = strengths(scores, by).transpose(0, 1).flatten()
    keep = torch.zeros(flat.shape, dtype=torch.bool)
    keep[flat.argsort(descending=True, stable=True)[:n]] = True
    U, V = scores.wiring.possible_UV.shape
    return _circuit(scores, keep.view(V, U, -1).transpose(0, 1)).pruned()


def above(scores: EdgeScores, threshold: float, by: By = "magnitude") -> Circuit:
    """The edges at least as strong as a threshold, without those that dangle."""
    return _circuit(scores, strengths(scores, by) >= threshold).pruned()


def greedy(scores: EdgeScores, n: int, by: By = "magnitude") -> Circuit:
    """`n` edges, taken one by one from the logits down: the strongest edge into an object that is in the circuit already.

    Hanna et al. 2024 (arXiv 2403.17806), section 3. Nothing dangles towards the logits; what dangles towards the embedding is
    removed, so that fewer than `n` edges may be left.

    Raises:
        ConfigError: as :func:`top`.
    """
    _check_count(scores, n)
    wiring, strength = scores.wiring, strengths(scores, by)
    keep = torch.zeros_like(strength, dtype=torch.bool)
    heap: list[tuple[float, int, int, int]] = []
    inside: set[int] = set()

    def open_reader(v: int) -> None:
        for u in range(len(wiring.writers)):
            if wiring.possible_UV[u, v]:
                for s in range(strength.shape[2]):
                    heapq.heappush(heap, (-float(strength[u, v, s]), v, u, s))

    open_reader(len(wiring.readers) - 1)
    for _ in range(n):
        if not heap:
            break
        _, v, u, s = heapq.heappop(heap)
        keep[u, v, s] = True
        if u not in inside:
            inside.add(u)
            for reader in wiring.readers_of[u]:
                open_reader(reader)
    return _circuit(scores, keep).pruned()


CHOICES = {"top": top, "greedy": greedy}
"""How a number of edges is chosen."""


def choose(scores: EdgeScores, counts: Sequence[int], by: By = "magnitude", how: str = "top") -> list[Circuit]:
    """A circuit for each number of edges.

    Raises:
        ConfigError: there is no such way to choose, or a number does not fit.
    """
    if how not in CHOICES:
        raise ConfigError(f"Edges cannot be chosen by {how!r}.", f"Choose one of {', '.join(CHOICES)}.")
    return [CHOICES[how](scores, n, by) for n in counts]


def _circuit(scores: EdgeScores, keep_UVS: Tensor) -> Circuit:
    keep_UVS = keep_UVS & scores.wiring.possible_UV[..., None]
    return Circuit(scores.wiring, scores.spans, keep_UVS, scores.mean_UVS)


def _check_count(scores: EdgeScores, n: int) -> None:
    most = scores.wiring.n_edges * len(scores.spans)
    if not 0 <= n <= most:
        raise ConfigError(f"A circuit of {n} edges does not exist.", f"Give a number from 0 to {most}.")
