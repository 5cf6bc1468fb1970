"""The page on a dictionary: one file without a script that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from saekit.files import write_whole
from saekit.report import figures
from saekit.report.templates import environment
from saekit.views.dictionary import Content, dictionary_view

_CURVES = (
    ("fvu", "Variance unexplained (FVU)"),
    ("l0", "Features active per token (L0)"),
    ("dead_fraction", "Dead features"),
)


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


def _charts(view: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(title, drawing)."""
    drawn = [(title, figures.curve(view["rows"], name)) for name, title in _CURVES]
    drawn.append(("How often features fire", figures.densities(view["density_histogram"])))
    return [(title, drawing) for title, drawing in drawn if drawing is not None]


def _steering_charts(scan: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(title, drawing)."""
    return [
        ("Mentions per word", figures.rate_by_strength(scan)),
        (f"Perplexity over that of {scan['relative_to']}", figures.cost_by_strength(scan)),
    ]
