"""Scores of all edges at once, from gradients: EAP and EAP-IG.

Positive scores support the behaviour: S[u, v] = sum over positions of (o_u(clean) - o_u(corrupted)) . dM / d in_v, where o_u is
what writer u writes to the residual stream and in_v is the copy of the stream that reader v reads, before its norm. It is minus
the first-order change of the metric M when the edge carries the corrupted instead of the clean value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, UnsupportedModel
from saekit.locate.circuits.measure import AnyMetric, Measure
from saekit.locate.circuits.spans import Spans
from saekit.locate.circuits.taps import Outputs, Taps, Writes
from saekit.locate.circuits.wiring import Layer, Wiring
from saekit.names.edge import Edge
from saekit.names.site import Site
from saekit.progress import Bar, track
from saekit.tasks import Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

SCORINGS = ("eap", "eap_ig_inputs", "eap_ig_activations")
"""Names of the methods that score edges by gradients."""


@dataclass(eq=False)
class EdgeScores:
    """The score of every edge, for every prompt and group of positions.

    Attributes:
        wiring: the model's writers and readers.
        spans: the groups of positions.
        values_UVSB: the scores; 0 where there is no edge.
        obtained: how they were obtained, as JSON values.
        metric: the metric that was used.
    """

    wiring: Wiring
    spans: Spans
    values_UVSB: Tensor
    obtained: dict[str, Any] = field(default_factory=dict)
    metric: Any = None

    @property
    def mean_UVS(self) -> Tensor:
        """The means over the prompts."""
        return self.values_UVSB.mean(-1)

    @property
    def nodes_U(self) -> Tensor:
        """(U,) scores of the writers: the sums over their outgoing edges."""
        return self.values_UVSB.sum((1, 2)).mean(-1)

    def edges(self) -> list[Edge]:
        """The edges in the order of :meth:`per_edge`."""
        places = self.wiring.edge_places.tolist()
        return [self.wiring.edge(u, v, name) for u, v in places for name in self.spans.names]

    def per_edge(self) -> Tensor:
        """(N, B) the scores of :meth:`edges`."""
        u, v = self.wiring.edge_places.T
        return self.values_UVSB[u, v].flatten(0, 1)


@dataclass(frozen=True)
class Scoring:
    """How to score edges.

    Attributes:
        method: one of :data:`SCORINGS`.
        steps: points of the midpoint rule of integrated gradients.
        memory: bytes that the activations of one pass may take, roughly.
    """

    method: str = "eap"
    steps: int = 10
    memory: int = 1 << 29

    def __post_init__(self) -> None:
        if self.method not in SCORINGS:
            raise ConfigError(f"There is no edge score {self.method!r}.", f"Choose one of {', '.join(SCORINGS)}.")
        if self.steps < 1:
            raise ConfigError(f"Integrated gradients of {self.steps} steps do not exist.", "Use at least 1 step.")


def score_edges(
    lm: LanguageModel,
    task: Task,
    scoring: Scoring | None = None,
    *,
    metric: AnyMetric = None,
    positions: Any = None,
    progress: bool = True,
) -> EdgeScores:
    """Score every edge of a model by gradients.

    `eap` (Syed et al. 2023, arXiv 2310.10348) takes the gradient of the clean run: two forward passes and one backward pass.
    `eap_ig_inputs` (Hanna et al. 2024, arXiv 2403.17806) averages it over runs whose first block takes in corrupted + alpha
    (clean - corrupted), at the midpoints alpha = (i + 1/2) / steps. `eap_ig_activations` moves, for the edges of the embedding,
    of the heads of a layer or of an MLP, the outputs of these writers alone from corrupted to clean, on the clean prompt.

    Args:
        task: prompts; runs of rows padded on the right.
        scoring: how to score; None is EAP.
        metric: see :class:`Measure`.
        positions: see :meth:`Spans.of`.

    Raises:
        UnsupportedModel: the model's heads and MLPs do not add up to its residual stream.
        ConfigError: the metric has no gradient, or a setting does not fit.
    """
    measure = Measure(lm, task, metric)
    return _Scorer(lm, scoring or Scoring(), measure, Spans.of(measure.task, positions)).run(progress)


class _Scorer:
    def __init__(self, lm: LanguageModel, scoring: Scoring, measure: Measure, spans: Spans) -> None:
        self.lm, self.task, self.scoring, self.measure, self.spans = lm, measure.task, scoring, measure, spans
        self.wiring = Wiring.of(lm)
        self.writes = Writes(lm, self.wiring)
        U, V = self.wiring.possible_UV.shape
        self.values = torch.zeros(U, V, len(spans), len(self.task), dtype=torch.promote_types(lm.dtype, torch.float32))

    def run(self, progress: bool) -> EdgeScores:
        """Score the prompts, some at a time."""
        size, some = self._sizes()
        with track("scoring", len(self.task), unit="prompts", enabled=progress) as bar:
            for start in range(0, len(self.task), size):
                self._score(slice(start, min(start + size, len(self.task))), some, bar)
        facts: dict[str, Any] = {"steps": self.scoring.steps} if "ig" in self.scoring.method else {}
        facts |= {"method": self.scoring.method, "metric": self.measure.name}
        return EdgeScores(self.wiring, self.spans, self.values, facts, self.measure.metric)

    def _sizes(self) -> tuple[int, int]:
        """Prompts at a time, and steps of integrated gradients at a time."""
        U = len(self.wiring.writers)
        per_row = 8 * self.task.clean_BT.shape[1] * self.lm.d_model * (U + 30 * self.lm.n_layers)
        rows = max(1, self.scoring.memory // per_row)
        size = min(len(self.task), rows) if self.measure.divisible else len(self.task)
        return size, min(self.scoring.steps, max(1, rows // size))

    def _score(self, rows: slice, some: int, bar: Bar) -> None:
        clean_BT, corrupted_BT = (x[rows].to(self.lm.device) for x in (self.task.clean_BT, self.task.corrupted_BT))
        taps = Taps(self.lm, self.wiring)
        taps.run(corrupted_BT)
        corrupted, raw = taps.outputs(), dict(taps.acts)
        plain = self.scoring.method == "eap"
        taps = Taps(self.lm, self.wiring, grad=plain)
        logits = taps.run(clean_BT)
        clean = taps.outputs()
        moved = self.writes.difference(clean, corrupted)
        check_sums(self.lm, self.wiring, moved, clean, corrupted)
        if plain:
            self._add(rows, moved, taps, [logits], range(len(self.wiring.writers)))
        elif self.scoring.method == "eap_ig_inputs":
            site = Site("resid_pre", 0)
            for alphas in torch.arange(self.scoring.steps).split(some):
                self._step(rows, clean_BT, moved, (site, raw[site], clean.embed), alphas, range(len(self.wiring.writers)))
        else:
            own = dict(taps.acts)
            for site, writers in self._groups():
                for alphas in torch.arange(self.scoring.steps).split(some):
                    self._step(rows, clean_BT, moved, (site, raw[site], own[site]), alphas, writers)
        bar.update(rows.stop)

    def _groups(self) -> Iterator[tuple[Site, range]]:
        """The sites that are interpolated, each with its writers."""
        yield Site("resid_pre", 0), range(1)
        for layer, row in enumerate(self.wiring.layers):
            yield Site("heads", layer), range(row.before, row.before + row.n_heads)
            if row.mlp is not None:
                yield Site("mlp_out", layer), range(row.mlp, row.mlp + 1)

    def _step(
        self, rows: slice, tokens_BT: Tensor, moved: Tensor, path: tuple[Site, Tensor, Tensor], steps_n: Tensor, writers: range
    ) -> None:
        """Some points of the path of one site from its corrupted to its clean activation."""
        site, start, end = path
        alphas = ((steps_n + 0.5) / self.scoring.steps).to(start).reshape(-1, *[1] * start.ndim)
        points = (start + alphas * (end - start)).flatten(0, 1)
        taps = Taps(self.lm, self.wiring, grad=True)
        logits = taps.run(tokens_BT.repeat(len(steps_n), 1), {site: points})
        self._add(rows, moved, taps, list(logits.chunk(len(steps_n))), writers)

    def _add(self, rows: slice, moved: Tensor, taps: Taps, logits: list[Tensor], writers: range) -> None:
        """Add the scores of some writers, from the gradients of a run that has the prompts len(logits) times."""
        with torch.enable_grad():
            values = [self.measure(self.measure.narrowed(each, rows), rows, gradient=True) for each in logits]
            total = torch.stack(values).sum()
        steps = self.scoring.steps if "ig" in self.scoring.method else 1
        groups_BTS = self.spans.one_hot(rows).to(moved)
        for readers, before, grad in reader_gradients(taps, self.wiring, total, writers.start):
            last = min(before, writers.stop)
            mean = grad.unflatten(1, (len(logits), -1)).sum(1) / steps
            found = _products(moved[writers.start : last], mean, groups_BTS)
            self.values[writers.start : last, readers.start : readers.stop, :, rows] += found.to(self.values)


def reader_gradients(taps: Taps, wiring: Wiring, total: Tensor, first_writer: int = 0) -> Iterator[tuple[range, int, Tensor]]:
    """Gradients of a sum of metrics at the inputs of all readers that come after a writer.

    One backward pass gives the gradients at the queries, keys and values of every query head, at the inputs of the MLPs' norms
    and at the end of the stream. From queries, keys and values they are pulled back to the stream through the layer's projection
    and norm only, head by head.

    Yields:
        Readers, the number of writers before them, and the gradients (readers, rows, T, d_model).
    """
    layers = [n for n, row in enumerate(wiring.layers) if row.mlp is None or row.read_by_mlp > first_writer]
    with_mlp = [n for n in layers if n in taps.mlp_read]
    heads = [n for n in layers if wiring.layers[n].before > first_writer]
    points = [taps.end, *(taps.mlp_read[n] for n in with_mlp), *(x for n in heads for x in taps.qkv[n])]
    found = torch.autograd.grad(total, points, retain_graph=True, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(points, found)]
    V = len(wiring.readers)
    yield range(V - 1, V), len(wiring.writers), grads[0][None]
    for n, grad in zip(with_mlp, grads[1:]):
        row = wiring.layers[n]
        assert row.mlp_reader is not None
        if row.parallel:
            (grad,) = torch.autograd.grad(taps.mlp_read[n], taps.pre(n), grad, retain_graph=True)
        yield range(row.mlp_reader, row.mlp_reader + 1), row.read_by_mlp, grad[None]
    rest = iter(grads[1 + len(with_mlp) :])
    for n in heads:
        row = wiring.layers[n]
        for part, x in enumerate(taps.qkv[n]):
            first = row.first_reader + part * row.n_heads
            yield range(first, first + row.n_heads), row.before, _by_head(x, next(rest), taps.pre(n), row)


def _by_head(x: Tensor, grad: Tensor, stream: Tensor, row: Layer) -> Tensor:
    """(H, rows, T, d_model) the gradients at the stream of each head's part of `x` (rows, H, T, d_head)."""
    alone = torch.zeros(row.n_heads, *x.shape, dtype=grad.dtype, device=grad.device)
    index = torch.arange(row.n_heads, device=grad.device)
    alone[index, :, index] = grad.transpose(0, 1)
    (found,) = torch.autograd.grad(x, stream, alone, retain_graph=True, is_grads_batched=True)
    return found


def _products(moved: Tensor, grad: Tensor, groups_BTS: Tensor) -> Tensor:
    """(U, R, S, B) the sums over positions of a group, of moved (U, B, T, D) times grad (R, B, T, D)."""
    if groups_BTS.shape[2] == 1:
        return torch.matmul(moved.transpose(0, 1).flatten(2), grad.transpose(0, 1).flatten(2).mT).permute(1, 2, 0)[:, :, None]
    by_token = torch.matmul(moved.permute(1, 2, 0, 3), grad.permute(1, 2, 3, 0))
    return torch.einsum("btur,bts->ursb", by_token, groups_BTS)


def check_sums(lm: LanguageModel, wiring: Wiring, moved: Tensor, one: Outputs, other: Outputs) -> None:
    """Raise UnsupportedModel unless the writers before every reader add up to the stream that it reads."""
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(lm.dtype, 5e-2)
    assert one.end is not None and other.end is not None
    places = [(f"site:resid_pre.{n}", row.before, one.pre[n] - other.pre[n]) for n, row in enumerate(wiring.layers)]
    for n, row in enumerate(wiring.layers):
        if row.mlp is not None and not row.parallel:
            places.append((f"site:resid_mid.{n}", row.read_by_mlp, one.mid[n] - other.mid[n]))  # type: ignore[operator]
    places.append(("the end of the stream", len(wiring.writers), one.end - other.end))
    for name, before, change in places:
        size = moved[:before].abs().sum(0).max()
        error = float((moved[:before].sum(0) - change).abs().max() / (size + 1e-30))
        if error > tolerance:
            raise UnsupportedModel(
                f"{lm.name} has no circuits of heads and MLPs: their outputs do not add up to {name} (error {error:.1e}).",
                "Locate single objects instead.",
            )
