"""The page of an evaluation: what `saekit eval` measured, in charts and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from saekit.files import write_whole
from saekit.report.charts import Axis, Line, histogram, line_chart, percent
from saekit.report.templates import environment
from saekit.views.evaluation import evaluation_view


def write_evaluation(site: str, model: str, facts: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Args:
        facts: result of :func:`saekit.evaluate.dictionary.quality.quality`; if requested, also `probe`
            (:meth:`saekit.evaluate.dictionary.probing.Probes.to_dict`) and `transfer` (:meth:`Transfer.to_dict`).

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render_evaluation(site, model, facts))
    return path


def render_evaluation(site: str, model: str, facts: Mapping[str, Any]) -> str:
    """The page as HTML."""
    view = evaluation_view(site, model, facts)
    return environment().get_template("evaluation.html").render(view=view, charts=_charts(view))


def _charts(view: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(title, drawing)."""
    charts = []
    density, ranges = view["density_histogram"], view["fvu_by_norm"] or []
    if density is not None and any(density["counts"]):
        drawing = histogram(density["edges"], density["counts"], "log10 of the share of tokens", "features")
        charts.append(("How often features fire", drawing))
    if len(ranges) > 1:
        norms, unexplained = [row["norm"] for row in ranges], [row["fvu"] for row in ranges]
        x = Axis.around("norm of the activation, mean of each range", norms, log=True)
        drawing = line_chart([Line("FVU", norms, unexplained, "a dots")], x, Axis.around("FVU", unexplained, zero=True))
        charts.append(("Variance unexplained (FVU) by norm of the activation", drawing))
    quantiles = view["l0_quantiles"] or {}
    if len(set(quantiles.values())) > 1:
        shares = [float(name.removesuffix("%")) / 100 for name in quantiles]
        x = Axis("share of the tokens with at most this L0", 0.0, 1.0, show=percent)
        y = [float(n) for n in quantiles.values()]
        drawing = line_chart([Line("L0", shares, y, "a dots")], x, Axis.around("L0", y, zero=True))
        charts.append(("Features active per token (L0)", drawing))
    if view["probe_means"] is not None:
        charts.append(("Accuracy of probes", _by_k(view["probe_means"])))
    return charts


def _by_k(means: Mapping[str, Any]) -> Markup:
    """Mean accuracy against the number of latents."""
    ks = list(means["sparse"])
    rows = {
        "latents": ([means["sparse"][k]["accuracy"] for k in ks], "a dots"),
        "coordinates of the activation": ([means["coordinates"][k]["accuracy"] for k in ks], "c dots"),
        "dense probe": ([means["dense"]["accuracy"]] * len(ks), "b dashed"),
    }
    lines = [Line(name, [float(k) for k in ks], ys, kind) for name, (ys, kind) in rows.items()]
    x = Axis("latents or coordinates", 0.0, max(map(float, ks)))
    y = Axis("accuracy", min(0.5, *(y for line in lines for y in line.ys)), 1.0, show=percent)
    return line_chart(lines, x, y)
