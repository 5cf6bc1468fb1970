"""Charts of a training run: its metrics over the tokens trained on, and how often features fire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saekit.views import charts
from saekit.views.charts import Chart, Curve, Scale

# Name in the log -> title and vertical axis.
METRICS: dict[str, tuple[str, Scale]] = {
    "loss": ("Loss", Scale("loss", log=True)),
    "fvu": ("Variance unexplained (FVU)", Scale("FVU", log=True)),
    "l0": ("Features active per token (L0)", Scale("L0", zero=True)),
    "dead_fraction": ("Dead features", Scale("dead", zero=True, percent=True)),
    "lr": ("Learning rate", Scale("learning rate", zero=True)),
    "sparsity": ("Weight of the sparsity penalty", Scale("weight", log=True)),
    "threshold": ("Threshold at which features fire", Scale("threshold", zero=True)),
    "rate": ("Tokens per second", Scale("tokens per second", zero=True)),
}
TOKENS = Scale("tokens trained on", zero=True)
_MOST_POINTS = 300


def training_charts(
    rows: Sequence[Mapping[str, Any]], names: Iterable[str], *, l0_asked: float | None = None
) -> list[dict[str, Any]]:
    """Metrics of a training log, in training and on held-out documents. Those that were not logged are left out.

    Args:
        rows: of the log.
        names: of :data:`METRICS`.
        l0_asked: the L0 that training was asked for, if it was; drawn as a level.

    Returns:
        rows of `title`, `name` and `chart`.
    """
    found = []
    for name in names:
        title, scale = METRICS[name]
        if lines := both(rows, name):
            chart = charts.curves(lines, TOKENS, scale, limit=l0_asked if name == "l0" else None)
            found.append({"title": title, "name": name, "chart": chart})
    return found


def density_charts(counted: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A histogram of how often features fire, as :func:`training_charts` has it; none without features that fire.

    Args:
        counted: result of :func:`saekit.views.densities.density_histogram`.
    """
    if counted is None or not any(counted["counts"]):
        return []
    return [{"title": "How often features fire", "name": "densities", "chart": density_chart(counted)}]


def density_chart(counted: Mapping[str, Any]) -> Chart:
    """See :func:`density_charts`."""
    return charts.bars(counted["edges"], counted["counts"], Scale("log10 of the share of tokens"), Scale("features"))


def both(rows: Sequence[Mapping[str, Any]], name: str) -> list[Curve]:
    """A metric in training and on held-out documents. These are too few to say which features are dead."""
    lines = [curve("training", rows, name)]
    if name != "dead_fraction":
        lines.append(curve("held out", rows, f"heldout/{name}", dots=True))
    return [line for line in lines if line is not None]


def curve(title: str, rows: Sequence[Mapping[str, Any]], name: str, *, dots: bool = False) -> Curve | None:
    """A column of a training log, thinned to 300 points; None where it has no value."""
    own = [row for row in rows if row.get(name) is not None]
    own = own[:: max(1, -(-len(own) // _MOST_POINTS))]
    return Curve(title, [row["tokens"] for row in own], [row[name] for row in own], dots) if own else None
