"""The page on a dictionary: one file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views import charts
from saekit.views.charts import Curve, Scale
from saekit.views.curves import density_charts, training_charts
from saekit.views.dictionary import Content, dictionary_view

_METRICS = ("fvu", "l0", "dead_fraction")


def write(content: Content, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render(content))
    return path


def render(content: Content) -> str:
    """The page as HTML. Every text of a model or a corpus is escaped."""
    view = dictionary_view(content)
    steering = [None if each["steered"] is None else _steering_charts(each["steered"]["scan"]) for each in view["sections"]]
    return environment().get_template("page.html").render(view=view, charts=_charts(view), steering_charts=steering)


def _charts(view: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `title` and `chart`."""
    return training_charts(view["rows"], _METRICS) + density_charts(view["density_histogram"])


def _steering_charts(scan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The concept's rate and the relative perplexity at every strength, for the feature and for a random direction."""
    strength = Scale(f"strength ({scan['unit']})", zero=True)
    cost = f"perplexity over that of {scan['relative_to']}"
    rates = charts.curves(_arms(scan, "rates"), strength, Scale("mentions per word", zero=True, percent=True))
    costs = charts.curves(_arms(scan, "costs"), strength, Scale(cost, log=True), limit=scan["affordable"])
    return [{"title": "Mentions per word", "chart": rates}, {"title": cost[:1].upper() + cost[1:], "chart": costs}]


def _arms(scan: Mapping[str, Any], key: str) -> list[Curve]:
    return [
        Curve("feature", scan["strengths"], scan[key]["feature"], dots=True),
        Curve("random direction, same norm", scan["strengths"], scan[key]["random"], dots=True, quiet=True),
    ]
