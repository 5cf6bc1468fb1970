"""Attribution graphs of a workspace, in `graphs/`, each with what people made of it beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, UnknownRef, WorkspaceError
from saekit.files import write_whole
from saekit.json_files import read_json
from saekit.names.site_map import Kind, SiteMap
from saekit.plugins import nearest
from saekit.workspace import access
from saekit.workspace.rankings import check_name

if TYPE_CHECKING:
    from saekit.locate.graphs import PrunedGraph
    from saekit.locate.graphs.arrangement import Arrangement
    from saekit.sae import SAE
    from saekit.workspace.folder import WorkspaceFolder
    from saekit.workspace.workspace import Workspace

FORMAT, VERSION = "saekit-graph", 1
_ARRANGED = ".arrangement.json"
_MOST_BYTES = 1 << 28
_HINT = "Make the graph again with `saekit circuit`."


def names(ws: WorkspaceFolder) -> list[str]:
    """The names of the kept graphs, in order."""
    return sorted(path.stem for path in (ws.path / "graphs").glob("*.json") if not path.name.endswith(_ARRANGED))


def name_for(ws: WorkspaceFolder, prompt: str) -> str:
    """A free name for the graph of a prompt."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", prompt).strip("-").lower()[:60] or "graph"
    taken = set(names(ws))
    return plain if plain not in taken else next(each for n in range(2, len(taken) + 3) if (each := f"{plain}-{n}") not in taken)


def keep(ws: WorkspaceFolder, name: str, graph: PrunedGraph) -> Path:
    """Write a graph whole or not at all, in place of another of that name; returns its file.

    What people made of the other one stays: pins and groups of nodes that the new one lacks are not shown.

    Raises:
        ConfigError: no graph can have that name.
        Unwritable, StorageFull: it cannot be written, or its folder is a symbolic link that leads out of the workspace.
    """
    path = _file(ws, name)
    for each in (path.parent, path):
        access.check_link(ws.path, each)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, "version": VERSION, **graph.to_dict()}
    write_whole(path, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read(ws: WorkspaceFolder, name: str) -> PrunedGraph:
    """A kept graph.

    Raises:
        WorkspaceError: there is none of that name.
        ConfigError: its file is damaged, or of a newer version.
    """
    from saekit.locate.graphs import PrunedGraph

    kept = names(ws)
    if name not in kept:
        hint = nearest(name, kept) if kept else f'`saekit circuit {ws.shown} "TEXT"` makes one.'
        raise WorkspaceError(f"{ws.shown} has no graph {name!r:.80}.", hint)
    data = read_json(_file(ws, name), max_bytes=_MOST_BYTES, error=ConfigError, hint=_HINT)
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ConfigError(f"graphs/{name}.json holds no graph that this saekit reads.", _HINT)
    return PrunedGraph.from_dict(data)


def arrangement(ws: WorkspaceFolder, name: str) -> tuple[Arrangement, int]:
    """What people made of a graph, and how often it was saved; a new arrangement and 0 where nobody has.

    Raises:
        ConfigError: its file is damaged.
    """
    from saekit.locate.graphs.arrangement import Arrangement

    path = _arranged(ws, name)
    if not path.exists():
        return Arrangement(), 0
    data = read_json(path, max_bytes=1 << 22, error=ConfigError, hint=f"Mend or remove {path.name}.")
    saved = data.get("saved") if isinstance(data, dict) else None
    if not isinstance(saved, int):
        raise ConfigError(f"{path.name} holds no arrangement.", f"Mend or remove {path.name}.")
    return Arrangement.from_dict(data), saved


def arrange(ws: WorkspaceFolder, name: str, made: Arrangement, saved: int) -> int:
    """Save what somebody made of a graph; returns how often it was saved now. The workspace is held by the caller.

    Args:
        saved: how often it was saved when the person began: another person's work is not overwritten.

    Raises:
        WorkspaceError: somebody saved it since then, or there is no such graph.
        Unwritable, StorageFull: it cannot be written.
    """
    if name not in names(ws):
        raise WorkspaceError(f"{ws.shown} has no graph {name!r:.80}.", nearest(name, names(ws)))
    _, now = arrangement(ws, name)
    if now != saved:
        raise WorkspaceError("Somebody else saved this graph in the meantime.", "Open it again, and make your changes there.")
    path = _arranged(ws, name)
    access.check_link(ws.path, path)
    data: dict[str, Any] = {**made.to_dict(), "saved": now + 1}
    write_whole(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return now + 1


TRANSCODERS_HINT = (
    "Train one of all layers: saekit fit WORKSPACE --site 'mlp_in.0..3->mlp_out.0..3'; or give --dictionary FOLDER."
)


def transcoders(ws: Workspace) -> list[SAE]:
    """The transcoders that graphs are made of, with their weights.

    Raises:
        ConfigError: the workspace has none.
    """
    return [ws.sae(place) for place in transcoders_of(ws)]


def transcoders_of(ws: Workspace) -> list[str]:
    """The places of the transcoders that graphs are made of: a cross-layer transcoder, or else those of single layers.

    Raises:
        ConfigError: the workspace has none.
    """
    places = [str(place) for place, name in ws.dictionaries.all() if not name]
    kinds = {place: SiteMap.parse(place).kind for place in places}
    clts = [place for place in places if kinds[place] is Kind.CLT]
    singles = [place for place in places if kinds[place] is Kind.TRANSCODER]
    if not clts and not singles:
        what = f"{ws.shown} has no transcoder, and an attribution graph is made of transcoder features."
        raise ConfigError(what, TRANSCODERS_HINT)
    return clts or singles


def labels(ws: Workspace, graph: PrunedGraph) -> dict[str, str]:
    """Labels of features that the database of the workspace knows, by ref without position."""
    if not ws.database_path.exists():
        return {}
    found = {}
    with ws.database() as database:
        for ref in {node.ref.partition("[")[0] for node in graph.nodes if node.kind == "feature"}:
            try:
                found[ref] = database.feature(ref).label
            except UnknownRef:  # its dictionary is not indexed; those of several sites never are
                continue
    return {ref: label for ref, label in found.items() if label}


def made(ws: Workspace, prompt: str, nodes: float = 0.8, edges: float = 0.98) -> PrunedGraph:
    """The pruned, verified and labelled graph of a prompt, of the transcoders of the workspace.

    Args:
        prompt: the text that is continued.
        nodes, edges: shares of the influence that pruning keeps.

    Raises:
        ConfigError: the workspace has no transcoder, or the prompt no token.
    """
    from saekit.locate import graphs

    dictionaries = transcoders(ws)
    graph = graphs.attribution_graph(ws.lm, prompt, dictionaries=dictionaries, progress=False)
    shown = graphs.verified(ws.lm, graph, graph.pruned(nodes, edges), dictionaries=dictionaries, progress=False)
    return shown.labelled(labels(ws, shown))


def keep_as(ws: Workspace, name: str | None, *, graph: PrunedGraph, prompt: str) -> Path | None:
    """Keep a graph under a name, or a free one made from its prompt; None where the workspace cannot be written to."""
    chosen = name or name_for(ws, prompt)
    with access.optional(str(_file(ws, chosen))) as done, ws.writing():
        keep(ws, chosen, graph)
    return _file(ws, chosen) if done.done else None


def _file(ws: WorkspaceFolder, name: str) -> Path:
    return ws.path / "graphs" / f"{_checked(name)}.json"


def _arranged(ws: WorkspaceFolder, name: str) -> Path:
    return ws.path / "graphs" / f"{_checked(name)}{_ARRANGED}"


def _checked(name: str) -> str:
    """The name, if its file cannot be taken for what people made of another graph."""
    if f"{name}.json".endswith(_ARRANGED):
        raise ConfigError(f"A graph cannot be called {name!r:.80}.", "Pins and groups are in files of that name.")
    return check_name(name, "graph")
