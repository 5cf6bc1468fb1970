"""A page that compares dictionaries: how well each reconstructs, and with how many features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views import charts
from saekit.views.charts import Chart, Curve, Scale
from saekit.views.sweep import Compared


def write_sweep(title: str, compared: Sequence[Compared], path: str | Path, *, linked: bool = True) -> Path:
    """Write the page, whole or not at all.

    Args:
        linked: whether the same folder has pages about the training of the dictionaries.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render_sweep(title, compared, linked=linked))
    return path


def render_sweep(title: str, compared: Sequence[Compared], *, linked: bool = True) -> str:
    """The page as HTML."""
    routes = {each.route: [other for other in compared if other.route == each.route] for each in compared}
    charts = {route: _charts(some) for route, some in routes.items()}
    template = environment().get_template("sweep.html")
    heldout = all(each.metrics.get("heldout_tokens", 1) for each in compared)
    return template.render(title=title, routes=routes, charts=charts, linked=linked, heldout=heldout)


def _charts(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Rows of `title` and `chart`."""
    recovered = Scale("recovered", percent=True)
    return [
        {"title": "Variance unexplained (FVU) against L0", "chart": _against_l0(compared, "fvu", Scale("FVU", log=True))},
        {"title": "Cross-entropy recovered against L0", "chart": _against_l0(compared, "ce_recovered", recovered)},
    ]


def _against_l0(compared: Sequence[Compared], key: str, y: Scale) -> Chart:
    series: dict[str, list[Compared]] = {}
    for each in compared:
        series.setdefault(each.series, []).append(each)
    lines = []
    for name, some in series.items():
        xs, ys = ([float(each.metrics[axis]) for each in some] for axis in ("l0", key))
        lines.append(Curve(name or y.title, xs, ys, dots=True))
    return charts.curves(lines, Scale("features active per token (L0)", log=True), y)
