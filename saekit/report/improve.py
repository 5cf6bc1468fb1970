"""The page of improvements: each recipe's target before and after, beside its controls and its price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saekit.files import write_whole
from saekit.improve.report import Report
from saekit.report.templates import environment
from saekit.views.improve import improvements_view


def write_improvements(reports: Sequence[Report], path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StorageFull, Unwritable: it cannot be written.
    """
    path = Path(path)
    write_whole(path, environment().get_template("improve.html").render(view=improvements_view(reports)))
    return path
