"""What the pages of a workspace and of its dictionaries show: where each stands, its training, and what runs now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import SaekitError, WorkspaceError
from saekit.views import charts
from saekit.views.charts import Curve
from saekit.views.curves import METRICS, TOKENS, curve, density_charts, training_charts
from saekit.views.densities import density_histogram
from saekit.views.run_files import Row, read_rows
from saekit.views.workspace import workspace_view
from saekit.workspace import jobs

if TYPE_CHECKING:
    from feature_db import FeatureDB

_METRICS = ("fvu", "loss", "l0", "dead_fraction", "lr", "sparsity", "threshold")
_MOST_CURVES = 6


def workspace_page(path: Path) -> dict[str, Any]:
    """A workspace.

    Returns:
        What :func:`saekit.views.workspace.workspace_view` returns, and
        progress: :func:`progress` of the steps that are not complete.
        curves: a chart of the FVU of the dictionaries over their training, at most six of them, or None.
    """
    facts = workspace_view(path)
    lines: list[Curve] = []
    for each in facts["dictionaries"]:
        rows = _rows(path / each["folder"])
        if len(lines) < _MOST_CURVES and (line := curve(each["address"], rows, "fvu")) is not None:
            lines.append(line)
    chart = charts.curves(lines, TOKENS, METRICS["fvu"][1]) if lines else None
    return facts | {"progress": progress(path, facts), "curves": chart}


def progress(path: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How far the steps are that are not complete: rows of `what`, `done` and `of` (tokens; None where unknown).

    Args:
        path: the workspace.
        facts: :func:`saekit.views.workspace.workspace_view` of it.
    """
    rows = []
    cached = facts["activations"]
    if cached is not None and not cached["complete"]:
        rows.append({"what": "caching", "done": cached["tokens"], "of": (facts["study"] or {}).get("tokens")})
    for each in facts["dictionaries"]:
        if each["state"] == "unfinished":
            logged = _rows(path / each["folder"])
            done = logged[-1]["tokens"] if logged else 0
            rows.append({"what": f"training {each['address']}", "done": done, "of": each["tokens"]})
    return rows


def running(path: Path) -> dict[str, Any]:
    """The command that writes to a workspace now, and how far it is.

    Returns:
        job: as :meth:`saekit.workspace.jobs.Job.to_dict` has it, or None. progress: see :func:`progress`.
    """
    job = jobs.current(path)
    return {"job": None if job is None else job.to_dict(), "progress": progress(path, workspace_view(path))}


def dictionary_page(path: Path, address: str, database: FeatureDB | None) -> dict[str, Any]:
    """A dictionary: how good it is, its training, and how often its features fire.

    Args:
        path: the workspace.
        address: of the dictionary.
        database: of the workspace; None where nothing is indexed.

    Returns:
        The dictionary's entry of :func:`saekit.views.workspace.workspace_view`, and
        charts: rows of `title` and `chart`. last: the last row of the training log. settings: of the training.
        live: number of features that fired, or None where the features are not indexed.

    Raises:
        WorkspaceError: there is no such dictionary.
    """
    facts = workspace_view(path)
    found = [each for each in facts["dictionaries"] if each["address"] == address]
    if not found:
        known = ", ".join(each["address"] for each in facts["dictionaries"]) or "none"
        raise WorkspaceError(f"There is no dictionary {address!r:.80}.", f"Dictionaries here: {known}.")
    entry = found[0]
    rows = _rows(path / entry["folder"])
    drawn = training_charts(rows, _METRICS)
    live = None
    if database is not None and entry["indexed"] in ("fresh", "unknown"):
        density_F = database.densities(address)
        live = int((density_F > 0).sum())
        drawn += density_charts(density_histogram(density_F))
    own = [each for each in facts["next"] if entry["reads"] in each["command"]]
    settings = _settings(path / entry["folder"])
    return entry | {"charts": drawn, "last": rows[-1] if rows else None, "live": live, "next": own, "settings": settings}


def _settings(folder: Path) -> dict[str, Any]:
    """The plain settings of a training, without those that are not set."""
    from saekit.json_files import read_json

    try:
        config = read_json(folder / "train.json", hint="").get("config")
    except SaekitError:
        return {}
    known = config if isinstance(config, dict) else {}
    return {name: value for name, value in known.items() if value is not None and not isinstance(value, dict | list)}


def _rows(folder: Path) -> list[Row]:
    """The rows of a training log; none where it is damaged, which the list of problems says."""
    try:
        return read_rows(folder / "metrics.jsonl", "tokens")
    except SaekitError:
        return []
