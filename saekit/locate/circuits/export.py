"""Files of circuits: JSON that can be read again, and GraphML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError
from saekit.files import document, write_whole
from saekit.json_files import read_json
from saekit.locate.circuits.circuit import Circuit
from saekit.locate.graphml import graphml
from saekit.names.edge import Edge
from saekit.names.ref import Ref

FORMAT = "saekit-circuit"
_KEYS = {"format", "version", "obtained", "nodes", "edges"}
_NODES = {"ref": ("node", "string"), "kind": ("node", "string"), "layer": ("node", "int")}
_EDGES = {"edge": ("edge", "string"), "input": ("edge", "string"), "position": ("edge", "string"), "score": ("edge", "double")}


def circuit_dict(circuit: Circuit, obtained: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A circuit as JSON values.

    Nodes are heads, MLPs, `site:embed` and `site:logits`. An edge has its `source` and `target` as nodes, the reader that it
    enters as `input` (`q:1.2` of `head:1.2`), its `position` (null: all), its `score` (null: unknown), and its name `edge`.

    Args:
        circuit: the circuit.
        obtained: how it was obtained: model, task, method, evaluation.
    """
    nodes = [str(ref) for ref in (*circuit.nodes, Ref.whole("logits"))]
    rows = [{"ref": name, "kind": _kind(name), "layer": Ref.parse(name).layer} for name in nodes]
    edges = [
        {
            "edge": str(edge),
            "source": str(edge.source.at(None)),
            "target": _target(circuit, edge),
            "input": str(edge.target.at(None)),
            "position": edge.source.position,
            "score": circuit.score(edge),
        }
        for edge in circuit.edges
    ]
    return {"format": FORMAT, "version": 1, "obtained": dict(obtained or {}), "nodes": rows, "edges": edges}


def circuit_graphml(data: Mapping[str, Any]) -> str:
    """What :func:`circuit_dict` returns, as GraphML."""
    place = {node["ref"]: number for number, node in enumerate(data["nodes"])}
    edges = [(place[each["source"]], place[each["target"]], {name: each[name] for name in _EDGES}) for each in data["edges"]]
    return graphml(_NODES | _EDGES, data["nodes"], edges)


def write_circuit(circuit: Circuit, path: str | Path, obtained: Mapping[str, Any] | None = None) -> Path:
    """Write a circuit to a file, whole or not at all: GraphML for a name that ends in .graphml, else JSON.

    Raises:
        ConfigError: the name has another ending.
        StorageFull: there is no room.
    """
    path = Path(path)
    data = circuit_dict(circuit, obtained)
    match path.suffix:
        case ".graphml":
            write_whole(path, circuit_graphml(data))
        case ".json":
            write_whole(path, document(data) + "\n")
        case _:
            raise ConfigError(f"A circuit cannot be written to {path.name}.", "End the name in .json or .graphml.")
    return path


def read_edges(path: str | Path) -> tuple[list[Edge], dict[str, Any]]:
    """The edges of a circuit that :func:`write_circuit` wrote as JSON, for :meth:`Circuit.of`; and how it was obtained.

    Raises:
        ConfigError: there is no such file, or it does not hold a circuit.
        UnknownRef: an edge has no valid name.
    """
    data = read_json(Path(path), error=ConfigError)
    listed = data.get("edges")
    if data.get("format") != FORMAT or _KEYS - data.keys() or not isinstance(listed, list):
        raise ConfigError(f"{path} does not hold a circuit.", "Give a file that saekit circuit --out wrote.")
    if not all(isinstance(each, dict) and isinstance(each.get("edge"), str) for each in listed):
        raise ConfigError(f"{path} holds a circuit whose edges are damaged.", "Write it again.")
    return [Edge.parse(each["edge"]) for each in listed], dict(data["obtained"])


def _kind(name: str) -> str:
    if name.startswith("head:"):
        return "head"
    return {"site:embed": "embedding", "site:logits": "logits"}.get(name, "mlp")


def _target(circuit: Circuit, edge: Edge) -> str:
    """The node that an edge enters."""
    u = circuit.wiring.written_by(circuit.wiring.place(edge)[1])
    return "site:logits" if u is None else str(circuit.wiring.writers[u])
