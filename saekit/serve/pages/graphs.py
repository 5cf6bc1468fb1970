"""Attribution graphs: made, looked at, and arranged by people."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Response
from fastapi.responses import RedirectResponse

from saekit.errors import ConfigError, SaekitError
from saekit.locate.graphs.arrangement import Arrangement
from saekit.locate.graphs.export import circuit_tracer
from saekit.serve.forms import Sent
from saekit.serve.pages.feature import feature_url
from saekit.serve.rendering import json_response, page
from saekit.serve.state import OpenedHere, ServedHere, may_write
from saekit.views.graph import graph_view
from saekit.workspace import graphs as kept

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

router = APIRouter(prefix="/w/{ws}")
WRITES = Depends(may_write)
_LONGEST = 4000


@page(router, "/graphs", "graphs.html")
def graphs(opened: OpenedHere) -> dict[str, Any]:
    """The kept graphs. One that cannot be read says why."""
    ws = opened.workspace
    rows: list[dict[str, Any]] = []
    for name in kept.names(ws):
        row: dict[str, Any] = {"name": name, "url": f"/w/{opened.name}/graph:{quote(name)}", "problem": None, "lead": ""}
        try:
            view = graph_view(kept.read(ws, name))
            arranged, _ = kept.arrangement(ws, name)
            row |= {"lead": view["lead"], "nodes": len(view["nodes"]), "links": len(view["links"])}
            row |= {"pinned": len(arranged.pinned), "groups": len(arranged.supernodes)}
        except SaekitError as error:
            row |= {"nodes": None, "links": None, "pinned": None, "groups": None, "problem": error.what}
        rows.append(row)
    try:
        kept.transcoders_of(ws)
        why = None
    except ConfigError as error:
        why = f"{error.what} {error.hint}"
    return {"graphs": rows, "place": ws.shown, "why_none": why, "at": f"/w/{opened.name}"}


@page(router, "/graph:{name}", "graph.html")
def graph(opened: OpenedHere, name: str) -> dict[str, Any]:
    """A graph with its pins, groups and pruning."""
    view = graph_view(kept.read(opened.workspace, name))
    arranged, saved = kept.arrangement(opened.workspace, name)
    at = f"/w/{opened.name}"
    indexed = _indexed(opened)
    for node in view["nodes"]:
        ref = node["ref"].partition("[")[0]
        own = node["kind"] == "feature" and ref.removeprefix("feature:").rpartition("/")[0] in indexed
        node["url"] = feature_url(opened.name, ref) if own else None
    groups = {ref: each.name for each in arranged.supernodes for ref in each.nodes}
    for node in view["nodes"]:
        node |= {"pinned": node["ref"] in arranged.pinned, "group": groups.get(node["ref"], "")}
    own_url = f"{at}/graph:{quote(name)}"
    return view | {
        "name": name,
        "arrangement": arranged.to_dict(),
        "saved": saved,
        "save_url": f"{own_url}/arrangement",
        "export_url": f"{own_url}/circuit-tracer.json",
    }


@router.get("/graph:{name}/circuit-tracer.json", tags=["graphs"])
def export(opened: OpenedHere, name: str) -> Response:
    """The graph with its pins and groups, as circuit-tracer and Neuronpedia read it."""
    arranged, _ = kept.arrangement(opened.workspace, name)
    found = circuit_tracer(kept.read(opened.workspace, name), slug=name.lower(), arranged=arranged)
    answer = json_response(found)
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}.json"'
    return answer


@router.post("/graph:{name}/arrangement", tags=["graphs"], dependencies=[WRITES])
def arrange(opened: OpenedHere, name: str, body: Annotated[dict[str, Any], Body()]) -> Response:
    """Save pins, groups and pruning. `saved` is how often they were saved when the page was opened."""
    made, saved = Arrangement.from_dict(body), body.get("saved")
    if type(saved) is not int:
        raise ConfigError("The field saved is missing.", "Send the number that the page was given.")
    with opened.workspace.writing():
        return json_response({"saved": kept.arrange(opened.workspace, name, made, saved)})


@router.post("/graphs", tags=["graphs"], dependencies=[WRITES])
async def make(opened: OpenedHere, served: ServedHere, form: Sent) -> Response:
    """Make the graph of a prompt (`prompt`), and keep it."""
    prompt, ws = form.text("prompt"), opened.workspace
    if not prompt or len(prompt) > _LONGEST:
        raise ConfigError(f"The prompt has {len(prompt):,} characters.", f"Give one with 1 to {_LONGEST:,}.")

    def run(lm: LanguageModel) -> str:
        found = kept.made(ws, prompt)
        with ws.writing():
            return kept.keep(ws, kept.name_for(ws, prompt), found).stem

    name = await asyncio.wrap_future(served.worker.call(opened.name, ws, run))
    return RedirectResponse(f"/w/{opened.name}/graph:{quote(name)}", 303)


def _indexed(opened: OpenedHere) -> set[str]:
    """Addresses of dictionaries whose features have pages."""
    if not opened.workspace.database_path.exists():
        return set()
    return {sae.dictionary for sae in opened.database.saes()}
