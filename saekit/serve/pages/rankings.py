"""The rankings that a workspace keeps."""

from __future__ import annotations

from math import isfinite
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter

from saekit.errors import SaekitError
from saekit.serve.pages.feature import feature_url
from saekit.serve.rendering import page
from saekit.serve.state import OpenedHere
from saekit.views.ranking import ranking_view
from saekit.workspace import rankings as kept

router = APIRouter()
TOP = 200


@page(router, "/w/{ws}/rankings", "rankings.html")
def rankings(opened: OpenedHere) -> dict[str, Any]:
    """The kept rankings. One that cannot be read says why."""
    rows: list[dict[str, Any]] = []
    for name in kept.names(opened.workspace):
        row: dict[str, Any] = {"name": name, "url": f"/w/{opened.name}/ranking:{quote(name)}", "problem": None}
        try:
            view = ranking_view(opened.workspace.ranking(name), 1)
            first = view["rows"][0] if view["rows"] else None
            row |= {"title": view["title"], "model": view["model"], "objects": view["objects"], "first": first}
        except SaekitError as error:
            row |= {"title": "", "model": "", "objects": 0, "first": None, "problem": error.what}
        rows.append(row)
    return {"rankings": rows, "place": opened.workspace.shown}


@page(router, "/w/{ws}/ranking:{name}", "ranking.html")
def ranking(opened: OpenedHere, name: str) -> dict[str, Any]:
    """A kept ranking: its strongest objects, and maps of layers by heads or positions."""
    view = ranking_view(opened.workspace.ranking(name), TOP)
    for row in view["rows"]:
        row["score"] = row["score"] if isfinite(row["score"]) else None
        row["url"] = (
            feature_url(opened.name, row["ref"]) if row["ref"].startswith("feature:") and "->" not in row["ref"] else None
        )
    most = max((abs(row["score"]) for row in view["rows"] if row["score"] is not None), default=0.0)
    return view | {"name": name, "most": most, "shown": len(view["rows"])}
