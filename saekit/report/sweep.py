"""A page that compares dictionaries: how well each reconstructs, and with how many features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from saekit.files import write_whole
from saekit.report.charts import Axis, Line, line_chart, percent
from saekit.report.templates import environment
from saekit.views.sweep import Compared

_STYLES = "abdefgc"


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


def _charts(compared: Sequence[Compared]) -> list[tuple[str, Markup]]:
    """(title, drawing)."""
    return [
        ("Variance unexplained (FVU) against L0", _against_l0(compared, "fvu", "FVU", log=True)),
        ("Cross-entropy recovered against L0", _against_l0(compared, "ce_recovered", "recovered", show=percent)),
    ]


def _against_l0(
    compared: Sequence[Compared], key: str, label: str, *, log: bool = False, show: Callable[[float], str] | None = None
) -> Markup:
    series: dict[str, list[Compared]] = {}
    for each in compared:
        series.setdefault(each.series, []).append(each)
    x = Axis.around("features active per token (L0)", [each.metrics["l0"] for each in compared], log=True)
    y = Axis.around(label, [each.metrics[key] for each in compared], log=log, show=show)
    lines = []
    for i, (name, some) in enumerate(series.items()):
        xs, ys = ([float(each.metrics[axis]) for each in some] for axis in ("l0", key))
        lines.append(Line(name or label, xs, ys, f"{_STYLES[i % len(_STYLES)]} dots"))
    return line_chart(lines, x, y)
