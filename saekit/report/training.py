"""The page of a training run, finished or not: its log in charts and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views.curves import density_charts, training_charts
from saekit.views.training import Trained, gather_training, page_name, training_view

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace


_METRICS = ("loss", "fvu", "l0", "dead_fraction", "lr", "sparsity", "threshold")


def write_training(ws: Workspace, site: str, name: str = "") -> Path:
    """Write the page of a run into `reports/`, whole or not at all.

    Raises:
        WorkspaceError: there is no such run, or its files are damaged.
        StorageFull: there is no room.
    """
    path = ws.reports / page_name(site, name)
    write_whole(path, render_training(gather_training(ws, site, name)))
    return path


def render_training(run: Trained) -> str:
    """The page as HTML."""
    view = training_view(run)
    return environment().get_template("training.html").render(view=view, charts=_charts(view))


def _charts(view: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `title` and `chart`."""
    logged = training_charts(view["rows"], _METRICS, l0_asked=view["l0_asked"])
    return logged + density_charts(view["density_histogram"]) + training_charts(view["rates"], ("rate",))
