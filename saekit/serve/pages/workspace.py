"""The workspaces, and where each stands."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from saekit.serve.rendering import html, json_response, page
from saekit.serve.state import OpenedHere, Served, ServedHere
from saekit.views.workspace import workspace_row
from saekit.views.workspace_page import dictionary_page, running, workspace_page
from saekit.workspace import interventions

router = APIRouter()


def _workspaces(served: Served) -> dict[str, Any]:
    return {"workspaces": [{"name": name, **workspace_row(each.workspace.path)} for name, each in served.workspaces.items()]}


@router.get("/", include_in_schema=False)
def start(served: ServedHere, request: Request) -> Response:
    """The workspaces; where there is one only, it."""
    if len(served.workspaces) == 1:
        return RedirectResponse(f"/w/{next(iter(served.workspaces))}", 303)
    return html(request, "workspaces.html", _workspaces(served))


@router.get("/workspaces.json", tags=["pages"])
def start_json(served: ServedHere) -> Response:
    """The workspaces."""
    return json_response(_workspaces(served))


@page(router, "/w/{ws}", "workspace.html")
def workspace(opened: OpenedHere) -> dict[str, Any]:
    """Where a workspace stands: its parts, its training, what runs, and what to do next."""
    return workspace_page(opened.workspace.path) | {"steerers": interventions.steerers(opened.workspace)}


@router.get("/w/{ws}/jobs.json", tags=["pages"])
def running_jobs(opened: OpenedHere) -> Response:
    """The command that writes to the workspace now, and how far it is."""
    return json_response(running(opened.workspace.path))


@page(router, "/w/{ws}/dictionary:{dictionary:path}", "dictionary.html")
def dictionary(opened: OpenedHere, dictionary: str) -> dict[str, Any]:
    """How good a dictionary is, its training, and how often its features fire."""
    indexed = opened.workspace.database_path.exists()
    return dictionary_page(opened.workspace.path, dictionary, opened.database if indexed else None)
