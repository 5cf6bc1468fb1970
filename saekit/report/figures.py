"""The charts of pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from markupsafe import Markup

from saekit.report.charts import Axis, Line, histogram, line_chart, percent, times

# Metric -> label of its axis, "log" for a logarithmic axis (if all values are positive), and how values are written.
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
    """A metric against the tokens trained on, in training and on held-out documents; None if it was not logged.

    Args:
        rows: rows of the training log.
        name: name of the metric.
        goal: the target of the metric, if it has one.
    """
    title, style, show = _CURVES.get(name, (name, "", None))
    lines = []
    for key, series, kind in ((name, "training", "a"), (f"heldout/{name}", "held out", "b dots")):
        own = [row for row in rows if row.get(key) is not None]
        if own and not (name == "dead_fraction" and key != name):  # too few held-out tokens for a value
            lines.append(Line(series, [row["tokens"] for row in own], [row[key] for row in own], kind))
    if not lines:
        return None
    x = Axis("tokens trained on", 0.0, float(max(max(line.xs) for line in lines)) or 1.0)
    if goal is not None:
        lines.append(Line("asked for", [0.0, x.high], [goal, goal], "c dashed"))
    values = [y for line in lines for y in line.ys]
    log = style == "log" and min(values) > 0
    return line_chart(lines, x, Axis.around(title, values, log=log, zero=not log, show=show))


def densities(counted: Mapping[str, Any] | None) -> Markup | None:
    """A histogram of how often features fire.

    Args:
        counted: result of :func:`saekit.views.dictionary.density_histogram`.
    """
    if counted is None:
        return None
    return histogram(counted["edges"], counted["counts"], "log10 of the share of tokens", "features")


def rate_by_strength(scan: Mapping[str, Any]) -> Markup:
    """The concept's rate at every strength, for the feature and for a random direction.

    Args:
        scan: result of :func:`saekit.views.steering.steering_view`.
    """
    values = [y for ys in scan["rates"].values() for y in ys]
    return _by_strength(scan, "rates", Axis.around("mentions per word", values, zero=True, show=percent))


def cost_by_strength(scan: Mapping[str, Any]) -> Markup:
    """The relative perplexity at every strength, for the feature and for a random direction."""
    values = [y for ys in scan["costs"].values() for y in ys if isfinite(y)]
    axis = Axis.around(f"perplexity over that of {scan['relative_to']}", [scan["affordable"], *values], log=True, show=times)
    return _by_strength(scan, "costs", axis, limit=scan["affordable"])


def _by_strength(scan: Mapping[str, Any], key: str, y: Axis, limit: float | None = None) -> Markup:
    strengths = scan["strengths"]
    x = Axis(f"strength ({scan['unit']})", 0.0, max(strengths))
    names = {"feature": ("feature", "a dots"), "random": ("random direction, same norm", "c dots dashed")}
    lines = [Line(name, strengths, scan[key][arm], style) for arm, (name, style) in names.items()]
    return line_chart(lines, x, y, limit=limit)
