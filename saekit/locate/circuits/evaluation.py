"""How good circuits are: faithfulness, completeness, minimality, CPR and CMD, all by ablating edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.circuits.ablation import EdgeAblator
from saekit.locate.circuits.circuit import By, Circuit, choose, each_removed
from saekit.locate.circuits.scores import EdgeScores

GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges at which MIB (Mueller et al. 2025, arXiv 2504.13151) evaluates circuits."""


@dataclass(frozen=True)
class Curve:
    """Faithfulness of circuits of growing size.

    Attributes:
        shares: the shares of edges that were asked for.
        edges: the number of edges that each circuit has after pruning.
        faithfulness: of each circuit.
    """

    shares: tuple[float, ...]
    edges: tuple[int, ...]
    faithfulness: tuple[float, ...]

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the integral of faithfulness over the share of edges. Higher is better."""
        return _integral(self.shares, self.faithfulness)

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the integral of |1 - faithfulness| over the share of edges. 0 is best."""
        return _integral(self.shares, [abs(1 - f) for f in self.faithfulness])

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        rows = [{"share": s, "edges": n, "faithfulness": f} for s, n, f in zip(self.shares, self.edges, self.faithfulness)]
        return {"curve": rows, "cpr": self.cpr, "cmd": self.cmd}


@dataclass(frozen=True)
class Evaluation:
    """What ablation says of one circuit.

    Attributes:
        edges: number of its edges.
        share: share of the model's edges.
        faithfulness: f(C) = (m(C) - m(0)) / (m(N) - m(0)), where m is the mean metric with all edges but those of C ablated, N is
            the whole model and 0 is no edge.
        completeness: f(N minus C): what the rest of the model does without the circuit. Near 0 for a complete circuit.
        minimality: f(C) - f(C minus e) for each edge e in the order of `Circuit.edges`; empty where it was not asked for.
        intact, ablated: m(N) and m(0).
    """

    edges: int
    share: float
    faithfulness: float
    completeness: float
    minimality: tuple[float, ...]
    intact: float
    ablated: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the minimality of single edges."""
        return {name: getattr(self, name) for name in ("edges", "share", "faithfulness", "completeness", "intact", "ablated")}


def faithfulness(ablator: EdgeAblator, circuits: Sequence[Circuit], *, progress: bool = False) -> list[float]:
    """f(C) of each circuit, run as one batch.

    Raises:
        ConfigError: ablating all edges does not change the metric, so that there is nothing to explain.
    """
    values_KB = ablator.values([circuit.keep_UVS for circuit in circuits], progress=progress)
    return _ratios(ablator, values_KB).tolist()


def evaluate(ablator: EdgeAblator, circuit: Circuit, *, minimality: bool = False, progress: bool = False) -> Evaluation:
    """Faithfulness, completeness and, if asked for, the minimality of a circuit; raises as :func:`faithfulness`.

    Minimality takes one run for every edge.
    """
    keeps = torch.stack([circuit.keep_UVS, circuit.complement().keep_UVS])
    if minimality:
        keeps = torch.cat([keeps, each_removed(circuit)])
    f = _ratios(ablator, ablator.values(keeps, progress=progress)).tolist()
    drops = tuple(f[0] - each for each in f[2:])
    intact, ablated = float(ablator.intact_B.mean()), float(ablator.ablated_B.mean())
    return Evaluation(len(circuit), circuit.share, f[0], f[1], drops, intact, ablated)


def curve(
    ablator: EdgeAblator,
    scores: EdgeScores,
    *,
    grid: Sequence[float] = GRID,
    by: By = "magnitude",
    how: str = "top",
    progress: bool = False,
) -> Curve:
    """Faithfulness of the circuits of the strongest edges, for each share of a grid.

    Args:
        ablator: runs the circuits; its positions must be those of the scores.
        scores: of the edges.
        grid: shares of the model's edges, ascending.
        by, how: see :func:`saekit.locate.circuits.circuit.choose`.

    Raises:
        ConfigError: as :func:`faithfulness`.
    """
    total = scores.wiring.n_edges * len(scores.spans)
    circuits = choose(scores, [int(share * total + 1e-9) for share in grid], by, how)
    found = faithfulness(ablator, circuits, progress=progress)
    return Curve(tuple(grid), tuple(map(len, circuits)), tuple(found))


def _ratios(ablator: EdgeAblator, values_KB: Tensor) -> Tensor:
    intact, ablated = ablator.intact_B.mean(), ablator.ablated_B.mean()
    if abs(float(intact - ablated)) <= 1e-6 * (1 + abs(float(intact))):
        raise ConfigError(
            f"The metric {ablator.measure.name} is {float(intact):.4g} with and without all edges, so no circuit explains it.",
            "Give pairs whose corrupted prompts have another answer.",
        )
    return (values_KB.mean(1) - ablated) / (intact - ablated)


def _integral(x: Sequence[float], y: Sequence[float]) -> float:
    return float(torch.trapezoid(torch.tensor(y, dtype=torch.float64), torch.tensor(x, dtype=torch.float64)))
