"""The page of a ranking: a table, and heat maps of layers by heads or positions."""

from __future__ import annotations

from pathlib import Path

from saekit.files import write_whole
from saekit.report.templates import environment
from saekit.tasks import Ranking
from saekit.views.ranking import ranking_view


def write_ranking(ranking: Ranking, path: str | Path, top: int = 50) -> Path:
    """Write the page, whole or not at all.

    Args:
        ranking: what is shown.
        path: the file.
        top: number of objects in the table.

    Raises:
        StorageFull, Unwritable: it cannot be written.
    """
    path = Path(path)
    write_whole(path, render_ranking(ranking, top))
    return path


def render_ranking(ranking: Ranking, top: int = 50) -> str:
    """The page as HTML."""
    view = ranking_view(ranking, top)
    return environment().get_template("ranking.html").render(view=view)
