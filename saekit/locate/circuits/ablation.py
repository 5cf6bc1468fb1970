"""What circuits do: the metric when all edges outside a circuit are ablated, for many circuits at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.exclusive import innermost
from saekit.lm.run.attention_patterns import patterns_through
from saekit.locate.circuits.measure import AnyMetric, Measure
from saekit.locate.circuits.run import CircuitRunner
from saekit.locate.circuits.scores import check_sums
from saekit.locate.circuits.spans import Spans
from saekit.locate.circuits.taps import Outputs, Taps, Writes
from saekit.locate.circuits.wiring import Wiring
from saekit.progress import track
from saekit.tasks import Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

ABLATIONS = ("counterfactual", "mean", "zero")


@dataclass(frozen=True)
class Ablation:
    """How to ablate edges.

    Attributes:
        to: what an ablated edge carries: "counterfactual", what the writer writes on the corrupted prompt at the same position;
            "mean", the mean of that over all tokens of the corrupted prompts; "zero".
        memory: bytes that the activations of one run may take, roughly.
    """

    to: str = "counterfactual"
    memory: int = 1 << 29

    def __post_init__(self) -> None:
        if self.to not in ABLATIONS:
            raise ConfigError(f"Edges cannot be ablated to {self.to!r}.", f"Choose one of {', '.join(ABLATIONS)}.")


class EdgeAblator:
    """Runs circuits of a model on the prompts of a task.

    Args:
        lm: the model.
        task: its B prompts.
        metric: see :class:`saekit.locate.circuits.measure.Measure`.
        ablation: how edges are ablated; None is counterfactual.
        positions: see :meth:`saekit.locate.circuits.spans.Spans.of`.

    Attributes:
        wiring, spans, measure: of the model, the positions and the metric.
        intact_B: (B,) float64, the metric of the whole model.
        ablated_B: (B,) float64, the metric with all edges ablated.

    Raises:
        UnsupportedModel: the model's heads and MLPs do not add up to its residual stream, or its blocks cannot be called alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        metric: AnyMetric = None,
        ablation: Ablation | None = None,
        positions: Any = None,
    ) -> None:
        self.lm, self.ablation, self.wiring = lm, ablation or Ablation(), Wiring.of(lm)
        self.measure = Measure(lm, task, metric)
        self.task = task = self.measure.task
        self.spans = Spans.of(task, positions)
        self._writes = Writes(lm, self.wiring)
        self._row = 8 * task.clean_BT.shape[1] * lm.d_model * (len(self.wiring.writers) + 8)
        size = max(1, self.ablation.memory // self._row) if self.measure.divisible else len(task)
        self._means = self._mean_outputs(size) if self.ablation.to == "mean" else None
        self._parts = [self._prepare(slice(start, min(start + size, len(task)))) for start in range(0, len(task), size)]
        self.intact_B = torch.cat([part.intact for part in self._parts])
        self.ablated_B = torch.cat([part.ablated for part in self._parts])

    def values(self, keep: Tensor | Sequence[Tensor], *, progress: bool = False) -> Tensor:
        """(K, B) float64: the metric of every prompt in every circuit.

        Args:
            keep: (K, U, V, S) or (K, U, V) bool: the edges that each circuit keeps.
        """
        keep_KUVS = self._checked(keep)
        columns: list[Tensor] = []
        with track("running", len(keep_KUVS) * len(self._parts), unit="circuits", enabled=progress) as bar:
            for part in self._parts:
                size = max(1, self.ablation.memory // (self._row * (part.rows.stop - part.rows.start)))
                values = []
                with part.runner.hooked():
                    for some in keep_KUVS.split(size):
                        values.append(self._measured(part, part.runner.end(some)))
                        bar.update(len(columns) * len(keep_KUVS) + sum(map(len, values)))
                columns.append(torch.cat(values))
        return torch.cat(columns, 1)

    def logits(self, keep: Tensor | Sequence[Tensor]) -> Tensor:
        """(K, B, n, V) the logits of every circuit: at the positions that the metric reads, or at all of them."""
        keep_KUVS = self._checked(keep)
        with torch.no_grad():
            found = []
            for part in self._parts:
                with part.runner.hooked():
                    found.append(torch.stack([self._logits(part, end) for end in part.runner.end(keep_KUVS)]))
        return torch.cat(found, 1)

    def _checked(self, keep: Tensor | Sequence[Tensor]) -> Tensor:
        stacked = keep if isinstance(keep, Tensor) else torch.stack(list(keep))
        stacked = stacked[..., None] if stacked.ndim == 3 else stacked
        shape = (*self.wiring.possible_UV.shape, len(self.spans))
        if stacked.ndim != 4 or stacked.shape[1:3] != shape[:2] or stacked.shape[3] not in (1, shape[2]):
            raise ConfigError(f"Circuits of shape {tuple(stacked.shape)} do not fit a model of {shape} edges.")
        return stacked.bool().expand(-1, *shape)

    @torch.no_grad()
    def _prepare(self, rows: slice) -> _Part:
        """What the runs of some prompts need: the clean and the corrupted run, and the arguments of the blocks."""
        clean_BT, corrupted_BT = (x[rows].to(self.lm.device) for x in (self.task.clean_BT, self.task.corrupted_BT))
        runs = []
        for tokens_BT in (corrupted_BT, clean_BT):
            taps = Taps(self.lm, self.wiring)
            logits = taps.run(tokens_BT)
            runs.append(taps.outputs())
        corrupted, clean = runs
        check_sums(self.lm, self.wiring, self._writes.difference(clean, corrupted), clean, corrupted)
        with self.lm.lock, innermost(object()), patterns_through(self.lm):  # the masks must be those of this attention
            recording = self.lm.record(clean_BT)
        groups_BTS = self.spans.one_hot(rows).to(clean.embed)
        most = max(64, self.ablation.memory // (16 * clean_BT.shape[1] * self.lm.d_model))
        runner = CircuitRunner(self.lm, self._writes, recording, clean, self._carried(corrupted), groups_BTS, most)
        part = _Part(rows, runner, torch.empty(0), torch.empty(0))
        intact = self.measure(self.measure.narrowed(logits, rows), rows).double().cpu()
        with runner.hooked():
            nothing = torch.zeros(1, *self.wiring.possible_UV.shape, len(self.spans), dtype=torch.bool)
            ablated = self._measured(part, runner.end(nothing))[0]
        return replace(part, intact=intact, ablated=ablated)

    def _carried(self, corrupted: Outputs) -> Outputs:
        """What ablated edges carry, with the streams in which all edges are ablated."""
        if self.ablation.to == "counterfactual":
            return corrupted
        means = self._means
        zero = lambda x, mean: torch.zeros_like(x) if mean is None else mean.to(x).expand_as(x)  # noqa: E731
        embed = zero(corrupted.embed, means and means.embed)
        heads = [zero(z, means and means.heads[n]) for n, z in enumerate(corrupted.heads)]
        mlps = [None if x is None else zero(x, means and means.mlps[n]) for n, x in enumerate(corrupted.mlps)]
        carried, layers = Outputs(embed, heads, mlps), list(enumerate(self.wiring.layers))
        sums, written = (self._writes.of(each).cumsum(0) for each in (carried, corrupted))
        biases = torch.stack(
            [torch.zeros(self.lm.d_model).to(embed), *(self._writes.bias(n).to(embed) for n, _ in layers)]
        ).cumsum(0)

        def base(stream: Tensor, before: int, blocks: int) -> Tensor:
            """What the ablated writers make of a stream: all but the writers is constant, and is best taken from the biases."""
            rest = stream - written[before - 1]
            constant = biases[blocks].expand_as(rest)
            close = torch.allclose(rest, constant, rtol=0, atol=1e-4 * float(written[before - 1].abs().max()))
            return sums[before - 1] + (constant if close else rest)

        pre = [base(corrupted.pre[n], row.before, n) for n, row in layers]
        mid = [None if (x := corrupted.mid[n]) is None else base(x, row.read_by_mlp, n + 1) for n, row in layers]
        assert corrupted.end is not None
        return Outputs(embed, heads, mlps, pre, mid, base(corrupted.end, len(sums), len(layers)))

    @torch.no_grad()
    def _mean_outputs(self, size: int) -> Outputs:
        """What every writer writes on average over the real tokens of the corrupted prompts."""
        total: Outputs | None = None
        for start in range(0, len(self.task), size):
            rows = slice(start, start + size)
            taps = Taps(self.lm, self.wiring)
            taps.run(self.task.corrupted_BT[rows].to(self.lm.device))
            real = self.task.mask_BT[rows].bool().to(self.lm.device)
            found, count = taps.outputs(), float(self.task.mask_BT.sum())
            mean = Outputs(
                found.embed[real].sum(0) / count,
                [z[real].sum(0) / count for z in found.heads],
                [None if x is None else x[real].sum(0) / count for x in found.mlps],
            )
            if total is not None:
                mean = Outputs(
                    total.embed + mean.embed,
                    [a + b for a, b in zip(total.heads, mean.heads)],
                    [None if a is None or b is None else a + b for a, b in zip(total.mlps, mean.mlps)],
                )
            total = mean
        assert total is not None
        return total

    def _measured(self, part: _Part, ends_KBTD: Tensor) -> Tensor:
        """(K, B) float64."""
        return torch.stack([self.measure(self._logits(part, end), part.rows).double().cpu() for end in ends_KBTD])

    def _logits(self, part: _Part, end_BTD: Tensor) -> Tensor:
        return self.lm.unembed(self.measure.narrowed(end_BTD, part.rows))


@dataclass(frozen=True)
class _Part:
    """Some prompts, and what is known of them."""

    rows: slice
    runner: CircuitRunner
    intact: Tensor
    ablated: Tensor
