"""The page of an evaluation: what `saekit eval` measured, in charts and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views import charts
from saekit.views.charts import Chart, Curve, Scale
from saekit.views.curves import density_charts
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


def _charts(view: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `title` and `chart`."""
    found = density_charts(view["density_histogram"])
    ranges = view["fvu_by_norm"] or []
    if len(ranges) > 1:
        line = Curve("FVU", [row["norm"] for row in ranges], [row["fvu"] for row in ranges], dots=True)
        x = Scale("norm of the activation, mean of each range", log=True)
        title = "Variance unexplained (FVU) by norm of the activation"
        found.append({"title": title, "chart": charts.curves([line], x, Scale("FVU", zero=True))})
    quantiles = view["l0_quantiles"] or {}
    if len(set(quantiles.values())) > 1:
        shares = [float(name.removesuffix("%")) / 100 for name in quantiles]
        line = Curve("L0", shares, [float(n) for n in quantiles.values()], dots=True)
        x = Scale("share of the tokens with at most this L0", zero=True, percent=True)
        found.append({"title": "Features active per token (L0)", "chart": charts.curves([line], x, Scale("L0", zero=True))})
    if view["probe_means"] is not None:
        found.append({"title": "Accuracy of probes", "chart": _by_k(view["probe_means"])})
    return found


def _by_k(means: Mapping[str, Any]) -> Chart:
    """Mean accuracy against the number of latents."""
    ks = list(means["sparse"])
    xs = [float(k) for k in ks]
    lines = [
        Curve("latents", xs, [means["sparse"][k]["accuracy"] for k in ks], dots=True),
        Curve("coordinates of the activation", xs, [means["coordinates"][k]["accuracy"] for k in ks], dots=True, quiet=True),
        Curve("dense probe", xs, [means["dense"]["accuracy"]] * len(ks)),
    ]
    return charts.curves(lines, Scale("latents or coordinates", zero=True), Scale("accuracy", percent=True))
