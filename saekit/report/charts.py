"""Charts as inline SVG.

Pages show unchecked text of models and corpora, so their content security policy forbids every script. Charts
therefore need none. They print well, take their colours from the page's style sheet (and with them dark mode), and a page has
about 50 KB. A plotly chart would need scripts to be allowed, and 4.8 MB of JavaScript in each page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

# Size of the drawing. One unit is a pixel on a phone; the page scales the drawing.
_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 10, 38


@dataclass(frozen=True)
class Line:
    """One curve; points that are not finite are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str
    """A class of the style sheet: "a" to "g" are colours, "dots" adds a mark at every point, "dashed" breaks the line."""

    @property
    def points(self) -> list[tuple[float, float]]:
        """(x, y), finite."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Axis:
    """One axis: its range, its scale and how its values are written."""

    label: str
    low: float
    high: float
    log: bool = False
    show: Callable[[float], str] = field(default=lambda value: short(value))

    @classmethod
    def around(
        cls,
        label: str,
        values: Sequence[float],
        *,
        log: bool = False,
        zero: bool = False,
        show: Callable[[float], str] | None = None,
    ) -> Axis:
        """An axis with room for `values`, and for 0 if `zero` is set."""
        kept = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        low, high = min(kept), max(kept)
        if log:
            low, high = low / 1.15, high * 1.15
        else:
            low = min(low, 0.0) if zero else low
            high += 0.06 * (high - low)
            if high <= low:
                high = low + (abs(low) or 1.0)
        return cls(label, low, high, log, show or short)

    def place(self, value: float) -> float:
        """Position on the axis: 0 at its low end, 1 at its high end. Values beyond an end are placed at it."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self, at_most: int = 6) -> list[float]:
        """Round numbers within the axis, ascending."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for leading in ((1, 2, 5), (1, 3), (1,)):
                found = [n * 10.0**p for p in powers for n in leading if self.low <= n * 10.0**p <= self.high]
                if len(found) <= at_most:
                    break
            if len(found) >= 2:
                return found[:: -(-len(found) // at_most)]
        raw = (self.high - self.low) / at_most
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, *, limit: float | None = None) -> Markup:
    """Curves in one pair of axes, with a legend if there are several. `limit` is a dashed horizontal line."""
    parts = _frame(x, y)
    if limit is not None and y.low < limit < y.high:
        parts.append(_level("limit", _y(y, limit)))
    for line in lines:
        points = line.points
        path = " ".join(f"{_x(x, px)},{_y(y, py)}" for px, py in points)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(line.style, path))
        shown = points if "dots" in line.style.split() else _thinned(points)
        for px, py in shown:
            title = f"{line.name}: {y.show(py)} at {x.show(px)}"
            parts.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(
                    line.style, _x(x, px), _y(y, py), title
                )
            )
    names = [(line.style, line.name) for line in lines] if len(lines) > 1 else []
    ends = [f"{line.name} from {y.show(points[0][1])} to {y.show(points[-1][1])}" for line in lines if (points := line.points)]
    return _figure(parts, f"{y.label} against {x.label}: {'; '.join(ends)}", names)


def histogram(edges: Sequence[float], counts: Sequence[int], x_label: str, y_label: str) -> Markup:
    """Bars of `counts[i]` between `edges[i]` and `edges[i + 1]`."""
    x = Axis(x_label, edges[0], edges[-1])
    y = Axis.around(y_label, [float(count) for count in counts], zero=True)
    parts = _frame(x, y)
    for low, high, count in zip(edges, edges[1:], counts):
        left, right, top = _x(x, low), _x(x, high), _y(y, count)
        title = f"{count:,} between {short(low)} and {short(high)}"
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                left, top, round(max(right - left - 1, 0.5), 1), round(_HEIGHT - _BOTTOM - top, 1), title
            )
        )
    return _figure(parts, f"{y_label} by {x_label}", [])


def short(value: float) -> str:
    """A number in few characters: 1.5M, 20k, 0.05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e-12 else "0"


def percent(value: float) -> str:
    """A share in few characters: 12%, 0.4%."""
    return f"{100 * value:.3g}%"


def times(value: float) -> str:
    """A ratio in few characters: 5.2×."""
    return f"{value:.3g}×"


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * axis.place(value), 1)


def _y(axis: Axis, value: float) -> float:
    return round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * axis.place(value), 1)


def _frame(x: Axis, y: Axis) -> list[Markup]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in y.ticks():
        h = _y(y, value)
        parts.append(_level("grid", h))
        parts.append(Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(_LEFT - 5, h + 3.5, y.show(value)))
    for value in x.ticks():
        parts.append(Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(_x(x, value), bottom + 14, x.show(value)))
    parts.append(_level("axis", bottom))
    middle = (_LEFT + right) / 2
    parts.append(Markup('<text class="name middle" x="{}" y="{}">{}</text>').format(middle, _HEIGHT - 6, x.label))
    return parts


def _level(style: str, height: float) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{h}" y2="{h}"/>').format(style, _LEFT, _WIDTH - _RIGHT, h=height)


def _figure(parts: Sequence[Markup], description: str, names: Sequence[tuple[str, str]]) -> Markup:
    stroke = Markup('<svg viewBox="0 0 18 8" aria-hidden="true"><line class="line {}" x1="0" x2="18" y1="4" y2="4"/></svg>')
    legend = Markup("").join(Markup("<li>{}{}</li>").format(stroke.format(style), name) for style, name in names)
    key = Markup('<ul class="key">{}</ul>').format(legend) if names else Markup("")
    drawing = Markup("").join(parts)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>{}').format(
        _WIDTH, _HEIGHT, description, drawing, key
    )


def _thinned(points: list[tuple[float, float]], at_most: int = 60) -> list[tuple[float, float]]:
    return points[:: max(1, -(-len(points) // at_most))]
