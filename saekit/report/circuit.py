"""The page of a circuit: a picture with one row for each layer, its faithfulness, and its edges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views import charts
from saekit.views.charts import Chart, Curve, Scale
from saekit.views.circuit import Drawn, circuit_view, layered

_ROW = 70
"""Pixels between rows."""
_KINDS = {"q": "query", "k": "key", "v": "value"}


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
    """The page as HTML, one file that loads nothing."""
    view = circuit_view(data, evaluation)
    drawn = layered(data)
    curve = _curve(view["curve"]) if view["curve"] else None
    height = _ROW * len(drawn.rows) + 70
    return environment().get_template("circuit.html").render(view=view, picture=picture(drawn), height=height, curve=curve)


def picture(drawn: Drawn) -> Chart:
    """A drawing of a circuit: the embedding at the bottom, the logits at the top, edges as wide as their scores."""
    places = {name: _center(drawn, name) for name in drawn.place}
    nodes = [charts.Node(drawn.shown(name), *place) for name, place in places.items()]
    edges = []
    for each in drawn.edges:
        score, kind = each["score"], each["input"].partition(":")[0]
        text = each["edge"] if score is None else f"{each['edge']}: {score:+.3g}"
        against = score is not None and score < 0
        edge = charts.Link(
            places[each["source"]], places[each["target"]], text, _KINDS.get(kind, "other"), each["width"], against
        )
        edges.append(edge)
    return charts.network(nodes, edges)


def _center(drawn: Drawn, name: str) -> tuple[float, float]:
    row, column = drawn.place[name]
    return column + (drawn.columns - drawn.sizes[row]) / 2, float(row)


def _curve(rows: list[dict[str, Any]]) -> Chart:
    points = [row for row in rows if row["share"] > 0]
    line = Curve("faithfulness", [row["share"] for row in points], [row["faithfulness"] for row in points], dots=True)
    x = Scale("share of edges", log=True, percent=True)
    return charts.curves([line], x, Scale("faithfulness", zero=True, percent=True), limit=1.0)
