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
_QUIET = "--three"
_DECADES = 30.0
"""The ratio of largest to smallest value up to which a logarithmic axis names 2 and 5 as well as 1."""
_MOST_NUMBERS = 150
"""Cells of a map up to which each has its number in it."""


@dataclass(frozen=True)
class Scale:
    """One axis."""

    title: str
    log: bool = False
    zero: bool = False
    """Whether the axis begins at 0."""
    percent: bool = False
    """Whether values are shares."""
    down: bool = False
    """Whether the axis begins at the top, as texts do."""


@dataclass(frozen=True)
class Curve:
    """One curve; points that are not finite are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False
    """A mark at every point."""
    quiet: bool = False
    """Grey and dashed: something to compare with, such as a random control."""


def curves(lines: Sequence[Curve], x: Scale, y: Scale, *, limit: float | None = None) -> Chart:
    """Curves in one pair of axes. They differ in colour and in the pattern of their lines. `limit` is a dashed level."""
    data: list[dict[str, Any]] = []
    loud = itertools.count()
    for line in lines:
        number = 0 if line.quiet else next(loud)
        colour, dash = (_QUIET, "dash") if line.quiet else (_COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)])
        points = [(a, b) for a, b in zip(line.xs, line.ys, strict=True) if _drawn(a, x) and _drawn(b, y)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if line.dots else "lines",
                "name": line.name,
                "x": [a for a, _ in points],
                "y": [b for _, b in points],
                "line": {"color": colour, "dash": dash, "width": 2},
                "marker": {"size": 5, "color": colour, "symbol": "circle-open" if line.quiet else number},
            }
        )
    layout: dict[str, Any] = {"xaxis": _axis(x, data, "x"), "yaxis": _axis(y, data, "y"), "showlegend": len(lines) > 1}
    if limit is not None:
        level = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit}
        layout["shapes"] = [level | {"line": {"color": "--two", "dash": "dot", "width": 1.5}}]
    return {"data": data, "layout": layout}


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
    """A map of numbers: `rows[j][i]` at `xs[i]` and `ys[j]`, the first row at the bottom, as layers are, unless `y` goes down.

    Numbers of both signs get two colours around 0. Small maps have every number in its cell.
    """
    known = [value for row in rows for value in row if value is not None and math.isfinite(value)]
    both = any(value < 0 for value in known)
    most = max(map(abs, known), default=1.0) or 1.0
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": [list(row) for row in rows],
        "x": list(xs),
        "y": list(ys),
        "zmin": -most if both else 0.0,
        "zmax": most,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0, "--cold"], [0.5, "--card"], [1, "--heat"]] if both else [[0, "--card"], [1, "--heat"]],
        "hovertemplate": f"{y.title} %{{y}}, {x.title} %{{x}}: %{{z:.4g}}<extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0},
    }
    if len(known) <= _MOST_NUMBERS:
        digits = min(6, max(0, 1 - math.floor(math.log10(most))))
        trace |= {"texttemplate": f"%{{z:.{digits}f}}", "textfont": {"size": 10}}
    axes = {"xaxis": {**_axis(x), "type": "category"}, "yaxis": {**_axis(y), "type": "category"}}
    return {"data": [trace], "layout": axes | {"showlegend": False}}


@dataclass(frozen=True)
class Mark:
    """One value with its interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    quiet: bool = False
    """Grey: something to compare with."""


def intervals(marks: Sequence[Mark], x: Scale) -> Chart:
    """Values with their intervals, one below the other, each with its number. Quiet ones have another mark."""
    data = []
    for quiet in (False, True):
        own = [each for each in marks if each.quiet == quiet]
        colour = _QUIET if quiet else _COLOURS[0]
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": "controls" if quiet else "measured",
                "x": [each.value for each in own],
                "y": [each.name for each in own],
                "text": [short(each.value) for each in own],
                "textposition": "top center",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, (each.value if each.high is None else each.high) - each.value) for each in own],
                    "arrayminus": [max(0.0, each.value - (each.value if each.low is None else each.low)) for each in own],
                    "color": colour,
                    "thickness": 1.5,
                },
                "marker": {"size": 9, "color": colour, "symbol": "diamond-open" if quiet else "circle"},
                "hovertemplate": "%{y}: %{x:.4g}<extra></extra>",
            }
        )
    names = {"type": "category", "autorange": "reversed", "title": {"text": ""}}
    return {"data": data, "layout": {"xaxis": _axis(x), "yaxis": names, "showlegend": False}}


@dataclass(frozen=True)
class Node:
    """A box of a network."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Link:
    """An edge of a network, from one box to another."""

    start: tuple[float, float]
    end: tuple[float, float]
    text: str
    """Shown when the pointer is over its middle."""
    kind: str
    """Edges of one kind share a colour and a pattern."""
    width: float
    against: bool = False
    """Dashed."""


def network(nodes: Sequence[Node], links: Sequence[Link]) -> Chart:
    """Boxes in rows, with edges between them. Edges of one kind and about one width are one trace: thousands can be drawn."""
    kinds = list(dict.fromkeys(each.kind for each in links))
    groups: dict[tuple[str, bool, int], list[Link]] = {}
    for each in links:
        groups.setdefault((each.kind, each.against, math.ceil(each.width)), []).append(each)
    data: list[dict[str, Any]] = []
    for (kind, against, width), own in groups.items():
        middles = [[(start + end) / 2 for start, end in zip(each.start, each.end)] for each in own]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": kind,
                "legendgroup": kind,
                "showlegend": kind not in {trace["name"] for trace in data},
                "x": [value for each, (x, _) in zip(own, middles) for value in (each.start[0], x, each.end[0], None)],
                "y": [value for each, (_, y) in zip(own, middles) for value in (each.start[1], y, each.end[1], None)],
                "text": [text for each in own for text in (each.text, each.text, each.text, "")],
                "hovertemplate": "%{text}<extra></extra>",
                "opacity": 0.6,
                "line": {
                    "color": _COLOURS[kinds.index(kind) % len(_COLOURS)],
                    "width": width,
                    "dash": "dash" if against else "solid",
                },
            }
        )
    boxes = {"size": 40, "symbol": "square", "color": "--card", "line": {"color": "--strong-edge", "width": 1.5}}
    data.append(
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "objects",
            "showlegend": False,
            "x": [each.x for each in nodes],
            "y": [each.y for each in nodes],
            "text": [each.name for each in nodes],
            "textfont": {"color": "--ink", "size": 11},
            "hoverinfo": "skip",
            "marker": boxes,
        }
    )
    hidden = {"visible": False}
    return {"data": data, "layout": {"xaxis": hidden, "yaxis": hidden, "showlegend": True, "hovermode": "closest"}}


def described(chart: Chart) -> str:
    """What a chart shows, for people who cannot see it: its axes, and where each curve begins and ends."""
    layout = chart["layout"]
    axes = [layout[key].get("title", {}).get("text", "") for key in ("yaxis", "xaxis")]
    ends = [
        f"{each['name']} from {short(each['y'][0])} to {short(each['y'][-1])}"
        for each in chart["data"]
        if each["type"] == "scatter" and each["mode"].startswith("lines") and each["y"] and each["y"][-1] is not None
    ]
    against = " against ".join(filter(None, axes))
    return ": ".join(filter(None, (against, "; ".join(ends))))


def short(value: float) -> str:
    """A number in few characters."""
    return f"{value:.3g}"


def _axis(scale: Scale, data: Sequence[dict[str, Any]] = (), key: str = "") -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": scale.title}}
    if scale.log:
        values = [value for trace in data for value in trace[key]] if key else []
        wide = not values or max(values) / min(values) > _DECADES
        axis |= {"type": "log", "exponentformat": "power", "dtick": 1} if wide else {"type": "log", **_ticks(values, scale)}
    if scale.zero and not scale.log:
        axis["rangemode"] = "tozero"
    if scale.percent:
        axis["tickformat"] = ".2~%"
    return axis | ({"autorange": "reversed"} if scale.down else {})


def _ticks(values: Sequence[float], scale: Scale) -> dict[str, Any]:
    """Names of 1, 2 and 5 times the powers of ten around some values, and of every digit where they are near.

    plotly would write 0.2 as 2.
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    every = (1, 2, 5) if max(values) > 5 * min(values) else range(1, 10)
    found = [leading * 10.0**power for power in range(low, high + 1) for leading in every]
    texts = [f"{100 * value:.3g}%" if scale.percent else short(value) for value in found]
    return {"tickmode": "array", "tickvals": found, "ticktext": texts}


def _drawn(value: float | None, scale: Scale) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not scale.log)
