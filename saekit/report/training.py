"""The page of a training run, finished or not: its log in charts and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from saekit.files import write_whole
from saekit.report import figures
from saekit.report.templates import environment
from saekit.views.training import Trained, gather_training, page_name, training_view

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace


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


def _charts(view: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(title, drawing)."""
    rows = view["rows"]
    wanted = [
        ("Loss", figures.curve(rows, "loss")),
        ("Variance unexplained (FVU)", figures.curve(rows, "fvu")),
        ("Features active per token (L0)", figures.curve(rows, "l0", goal=view["l0_asked"])),
        ("Dead features", figures.curve(rows, "dead_fraction")),
        ("Learning rate", figures.curve(rows, "lr")),
        ("Weight of the sparsity penalty", figures.curve(rows, "sparsity")),
        ("Threshold at which latents fire", figures.curve(rows, "threshold")),
        ("How often features fire", figures.densities(view["density_histogram"])),
        ("Tokens per second", figures.curve(view["rates"], "rate")),
    ]
    return [(title, drawing) for title, drawing in wanted if drawing is not None]
