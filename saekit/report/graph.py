"""The page of an attribution graph: tables, and one script of the page's own that draws them."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.views.graph import graph_view

if TYPE_CHECKING:
    from saekit.locate.graphs import PrunedGraph


def write_graph_page(graph: PrunedGraph, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render_graph(graph))
    return path


def render_graph(graph: PrunedGraph) -> str:
    """The page as HTML. Every text of a model or a label is escaped. The policy of the page allows its own script by a hash."""
    script, digest = _script()
    template = environment().get_template("graph.html")
    return template.render(view=graph_view(graph), script=Markup(script), script_hash=digest)


@cache
def _script() -> tuple[str, str]:
    """The script of the page, and what the page's policy allows it by."""
    text = "\n" + (Path(__file__).parent / "graph.js").read_text() + "\n"
    return text, "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
