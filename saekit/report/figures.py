"""The charts of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from saekit.evaluate.steering.dose_response import Arm, Sweep
from saekit.report.charts import Axis, Line, histogram, line_chart, percent, times
from saekit.views.dictionary import Steered

COST = 1.5
"""A perplexity ratio beyond which text is no longer the model's."""

# Metric -> what its axis is called, whether it is logarithmic where all values allow it, and how values are written.
_CURVES: dict[str, tuple[str, str, Callable[[float], str] | None]] = {
    "loss": ("loss", "log", None),
    "fvu": ("FVU", "log", None),
    "l0": ("L0", "", None),
    "dead_fraction": ("dead", "", percent),
    "lr": ("learning rate", "", None),
    "sparsity": ("weight", "log", None),
    "rate": ("tokens per second", "", None),
}


def curve(rows: Sequence[Mapping[str, Any]], name: str, *, goal: float | None = None) -> Markup | None:
    """A metric against the tokens trained on, in training and on held-out documents; None where it was not logged.

    Args:
        rows: of the training log.
        goal: what it is to come to.
    """
    title, style, show = _CURVES.get(name, (name, "", None))
    lines = []
    for key, series, kind in ((name, "training", "a"), (f"heldout/{name}", "held out", "b dots")):
        own = [row for row in rows if row.get(key) is not None]
        if own and not (name == "dead_fraction" and key != name):  # of so few held-out tokens it says nothing
            lines.append(Line(series, [row["tokens"] for row in own], [row[key] for row in own], kind))
    if not lines:
        return None
    x = Axis("tokens trained on", 0.0, float(max(max(line.xs) for line in lines)) or 1.0)
    if goal is not None:
        lines.append(Line("asked for", [0.0, x.high], [goal, goal], "c dashed"))
    values = [y for line in lines for y in line.ys]
    log = style == "log" and min(values) > 0
    return line_chart(lines, x, Axis.around(title, values, log=log, zero=not log, show=show))


def densities(density_F: NDArray[np.float64]) -> Markup | None:
    """How many features fire how often, given the share of tokens on which each does; None where none does."""
    logs = np.log10(density_F[density_F > 0])
    if not len(logs):
        return None
    edges = np.arange(math.floor(4 * logs.min()), math.floor(4 * logs.max()) + 2) / 4
    counts, _ = np.histogram(logs, edges)
    return histogram(edges.tolist(), counts.tolist(), "log10 of the share of tokens", "features")


def rate_by_strength(steered: Steered) -> Markup:
    """The concept's rate at every strength of the scan, for the feature and the random push."""
    scan = steered.scan
    values = [[scan.baseline.rate.value, *(arm.rate.value for arm in arms)] for arms in _arms(scan)]
    return _by_strength(scan, values, Axis.around("mentions a word", [y for ys in values for y in ys], zero=True, show=percent))


def cost_by_strength(steered: Steered) -> Markup:
    """The perplexity ratio at every strength of the scan, for the feature and the random push."""
    scan = steered.scan
    values = [[1.0, *(scan.cost(arm) for arm in arms)] for arms in _arms(scan)]
    axis = Axis.around("perplexity over the baseline's", [2.0, *(y for ys in values for y in ys)], log=True, show=times)
    return _by_strength(scan, values, axis, limit=COST)


def _arms(scan: Sweep) -> list[list[Arm]]:
    return [[point.steered for point in scan.points], [point.random for point in scan.points]]


def _by_strength(scan: Sweep, values: list[list[float]], y: Axis, limit: float | None = None) -> Markup:
    strengths = [0.0, *(point.strength.values[0] for point in scan.points)]
    x = Axis(f"strength ({scan.points[0].strength.unit})", 0.0, max(strengths))
    names = (("feature", "a dots"), ("random push of the same norm", "c dots dashed"))
    lines = [Line(name, strengths, ys, style) for (name, style), ys in zip(names, values, strict=True)]
    return line_chart(lines, x, y, limit=limit)
