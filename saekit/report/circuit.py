"""The page of a circuit: a picture with one row for each layer, its faithfulness, and its edges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from saekit.files import write_whole
from saekit.report.charts import Axis, Line, line_chart, percent
from saekit.report.templates import environment
from saekit.views.circuit import Drawn, circuit_view, layered

_ROW, _COLUMN, _WIDE, _HIGH = 78, 84, 72, 24


def write_circuit_page(data: Mapping[str, Any], path: str | Path, evaluation: Mapping[str, Any] | None = None) -> Path:
    """Write the page, whole or not at all.

    Args:
        data: what :func:`saekit.locate.circuits.export.circuit_dict` returns.
        path: the file.
        evaluation: the evaluation of the circuit, with the `curve` of circuits of growing size where there is one.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render_circuit(data, evaluation))
    return path


def render_circuit(data: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> str:
    """The page as HTML, one file without a script."""
    view = circuit_view(data, evaluation)
    chart = _curve(view["curve"]) if view["curve"] else None
    return environment().get_template("circuit.html").render(view=view, picture=picture(data), chart=chart)


def picture(data: Mapping[str, Any]) -> Markup:
    """A drawing of a circuit: the embedding at the bottom, the logits at the top, edges as wide as their scores."""
    drawn = layered(data)
    width = _COLUMN * max(drawn.columns, 1) + 24
    height = _ROW * len(drawn.rows)
    parts = [_edge(drawn, height, each) for each in drawn.edges]
    for name in drawn.place:
        x, y = _center(drawn, height, name)
        box = Markup('<g class="box"><rect x="{}" y="{}" width="{}" height="{}" rx="5"/><text x="{}" y="{}">{}</text></g>')
        parts.append(box.format(x - _WIDE / 2, y - _HIGH / 2, _WIDE, _HIGH, x, y + 4, drawn.shown(name)))
    description = f"A circuit of {len(drawn.place)} objects and {len(data['edges'])} edges"
    return Markup('<svg class="circuit" viewBox="0 0 {} {}" style="min-width: {}px" role="img" aria-label="{}">{}</svg>').format(
        width, height, min(width, 900), description, Markup("").join(parts)
    )


def _center(drawn: Drawn, height: int, name: str) -> tuple[float, float]:
    row, column = drawn.place[name]
    spare = (drawn.columns - drawn.sizes[row]) / 2
    return 12 + (column + spare + 0.5) * _COLUMN, height - (row + 0.5) * _ROW


def _edge(drawn: Drawn, height: int, edge: Mapping[str, Any]) -> Markup:
    (x0, y0), (x1, y1) = (_center(drawn, height, edge[end]) for end in ("source", "target"))
    y0, y1 = y0 - _HIGH / 2, y1 + _HIGH / 2
    middle = (y0 + y1) / 2
    score, name = edge["score"], edge["input"].partition(":")[0]
    kind = name if name in ("q", "k", "v") else ""
    title = f"{edge['edge']}" + ("" if score is None else f": {score:+.3g}")
    style = "edge against" if score is not None and score < 0 else "edge"
    return Markup('<path class="{} {}" d="M{} {} C{} {} {} {} {} {}" stroke-width="{}"><title>{}</title></path>').format(
        style, kind, x0, y0, x0, middle, x1, middle, x1, y1, edge["width"], title
    )


def _curve(rows: list[dict[str, Any]]) -> Markup:
    points = [row for row in rows if row["share"] > 0]
    xs, ys = [row["share"] for row in points], [row["faithfulness"] for row in points]
    y = Axis.around("faithfulness", [0.0, 1.0, *ys], show=percent)
    return line_chart(
        [Line("faithfulness", xs, ys, "a dots")], Axis.around("share of edges", xs, log=True, show=percent), y, limit=1.0
    )
