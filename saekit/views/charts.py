"""Charts as plain dicts in the form of plotly (`data` and `layout`), for pages that draw them with its JavaScript.

Colours are names of the style sheet (`--one` to `--six`, `--heat`), so that a chart has those of the light or the dark page. No
library is loaded here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Chart = dict[str, Any]
_DASHES = ("solid", "dash", "dot", "dashdot")
_COLOURS = ("--one", "--two", "--four", "--five", "--six", "--three")


@dataclass(frozen=True)
class Scale:
    """One axis."""

    title: str
    log: bool = False
    zero: bool = False
    """Whether the axis begins at 0."""
    percent: bool = False
    """Whether values are shares."""


@dataclass(frozen=True)
class Curve:
    """One curve; points that are not finite are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False
    """A mark at every point."""


def curves(lines: Sequence[Curve], x: Scale, y: Scale) -> Chart:
    """Curves in one pair of axes. They differ in colour and in the pattern of their lines."""
    data = []
    for number, line in enumerate(lines):
        points = [(a, b) for a, b in zip(line.xs, line.ys, strict=True) if _drawn(a, x) and _drawn(b, y)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if line.dots else "lines",
                "name": line.name,
                "x": [a for a, _ in points],
                "y": [b for _, b in points],
                "line": {"color": _COLOURS[number % len(_COLOURS)], "dash": _DASHES[number % len(_DASHES)], "width": 2},
                "marker": {"size": 5, "color": _COLOURS[number % len(_COLOURS)], "symbol": number},
            }
        )
    return {"data": data, "layout": {"xaxis": _axis(x), "yaxis": _axis(y), "showlegend": len(lines) > 1}}


def bars(edges: Sequence[float], counts: Sequence[int], x: Scale, y: Scale) -> Chart:
    """A histogram: `counts[i]` between `edges[i]` and `edges[i + 1]`."""
    bins = list(itertools.pairwise(edges))
    trace = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in bins],
        "y": list(counts),
        "width": [high - low for low, high in bins],
        "marker": {"color": "--one"},
        "customdata": [[short(low), short(high)] for low, high in bins],
        "hovertemplate": "%{y:,} between %{customdata[0]} and %{customdata[1]}<extra></extra>",
    }
    return {"data": [trace], "layout": {"xaxis": _axis(x), "yaxis": _axis(y), "bargap": 0.04, "showlegend": False}}


@dataclass(frozen=True)
class Dots:
    """Points of a scatter chart; lists of one length."""

    xs: Sequence[float]
    ys: Sequence[float]
    names: Sequence[str]
    links: Sequence[str]
    """Addresses that a click opens."""
    groups: Sequence[str]
    """Points of one group share colour and mark."""


def dots(points: Dots, x: Scale, y: Scale) -> Chart:
    """Points that open a page when they are clicked."""
    data = []
    for number, group in enumerate(dict.fromkeys(points.groups)):
        own = [i for i, each in enumerate(points.groups) if each == group and _drawn(points.xs[i], x) and _drawn(points.ys[i], y)]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": group,
                "x": [points.xs[i] for i in own],
                "y": [points.ys[i] for i in own],
                "customdata": [[points.links[i], points.names[i]] for i in own],
                "meta": {"links": True},
                "hovertemplate": "%{customdata[1]}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
                "marker": {"color": _COLOURS[number % len(_COLOURS)], "symbol": number, "size": 5, "opacity": 0.65},
            }
        )
    several = len(data) > 1
    return {"data": data, "layout": {"xaxis": _axis(x), "yaxis": _axis(y), "showlegend": several, "hovermode": "closest"}}


def heat(rows: Sequence[Sequence[float | None]], xs: Sequence[str], ys: Sequence[str], x: Scale, y: Scale) -> Chart:
    """A map of numbers with one sign: `rows[j][i]` at `xs[i]` and `ys[j]`; numbers of both signs get two colours around 0."""
    known = [value for row in rows for value in row if value is not None and math.isfinite(value)]
    both = any(value < 0 for value in known)
    most = max(map(abs, known), default=1.0) or 1.0
    trace = {
        "type": "heatmap",
        "z": [list(row) for row in rows],
        "x": list(xs),
        "y": list(ys),
        "zmin": -most if both else 0.0,
        "zmax": most,
        "colorscale": [[0, "--cold"], [0.5, "--card"], [1, "--heat"]] if both else [[0, "--card"], [1, "--heat"]],
        "hovertemplate": "%{y}, %{x}: %{z:.4g}<extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0},
    }
    axes = {"xaxis": {**_axis(x), "type": "category"}, "yaxis": {**_axis(y), "type": "category", "autorange": "reversed"}}
    return {"data": [trace], "layout": axes | {"showlegend": False}}


def short(value: float) -> str:
    """A number in few characters."""
    return f"{value:.3g}"


def _axis(scale: Scale) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": scale.title}}
    if scale.log:
        axis |= {"type": "log", "exponentformat": "power", "dtick": 1}
    if scale.zero and not scale.log:
        axis["rangemode"] = "tozero"
    if scale.percent:
        axis["tickformat"] = ".2~%"
    return axis


def _drawn(value: float | None, scale: Scale) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not scale.log)
