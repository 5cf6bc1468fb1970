"""Files of graphs: the JSON of circuit-tracer and Neuronpedia, GraphML, and plain JSON."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saekit.files import write_whole
from saekit.locate.graphml import graphml as as_graphml
from saekit.locate.graphs.arrangement import Arrangement
from saekit.locate.graphs.graph import Node, PrunedGraph
from saekit.plugins import Registry
from saekit.version import VERSION

_SLUG = re.compile(r"[^a-z0-9]+")


def circuit_tracer(graph: PrunedGraph, *, slug: str = "", scan: str = "", arranged: Arrangement | None = None) -> dict[str, Any]:
    """The graph in the schema that circuit-tracer's pages and Neuronpedia read.

    Beside the fields of the schema, a link has `measured` and `verified`, and a node has `effect`.

    Args:
        graph: the graph.
        slug: its name in a list of graphs; made from the prompt by default.
        scan: the model's name there; the model's own by default.
        arranged: pinned nodes, groups and pruning that people made.
    """
    facts, prompt = graph.facts, "".join(graph.pieces)
    layers = int(facts.get("layers", 1 + max((node.layer or 0 for node in graph.nodes), default=0)))
    ids = [_id(node, layers) for node in graph.nodes]
    top = max((node.probability for node in graph.nodes), default=0.0)
    nodes = [_node(graph, number, ids[number], layers, top) for number in range(len(ids))]
    links = [
        {
            "source": ids[link.source],
            "target": ids[link.target],
            "weight": link.weight,
            "measured": link.measured,
            "verified": link.verified,
        }
        for link in graph.links
    ]
    settings = facts.get("settings", {})
    metadata = {
        "slug": slug or _SLUG.sub("-", prompt.lower()).strip("-")[:60] or "graph",
        "scan": scan or str(facts.get("model", "")),
        "transcoder_list": list(facts.get("dictionaries", [])),
        "prompt_tokens": list(graph.pieces),
        "prompt": prompt,
        "node_threshold": facts.get("node_threshold"),
        "schema_version": 1,
        "info": {"generator": {"name": "saekit", "version": VERSION}, "create_time_ms": int(time.time() * 1000)},
        "generation_settings": {
            "max_n_logits": settings.get("most_logits"),
            "desired_logit_prob": settings.get("logit_probability"),
            "max_feature_nodes": settings.get("max_feature_nodes"),
        },
        "pruning_settings": {"node_threshold": facts.get("node_threshold"), "edge_threshold": facts.get("edge_threshold")},
        "scores": {name: facts.get(name) for name in ("replacement_score", "completeness_score")},
    }
    arranged, named = arranged or Arrangement(), {node.ref: name for node, name in zip(graph.nodes, ids)}
    groups = [[each.name, *(named[ref] for ref in each.nodes if ref in named)] for each in arranged.supernodes]
    query = {
        "pinnedIds": [named[ref] for ref in arranged.pinned if ref in named],
        "supernodes": [each for each in groups if len(each) > 1],  # a group of nodes that this graph lacks stays in the workspace
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
        "pruningThreshold": arranged.share,
    }
    return {"metadata": metadata, "qParams": query, "nodes": nodes, "links": links}


def _id(node: Node, layers: int) -> str:
    if node.kind == "feature":
        return f"{node.layer}_{node.unit}_{node.position}"
    if node.kind == "error":
        return f"{node.layer}_-1_{node.position}"
    return f"{'E' if node.kind == 'token' else layers + 1}_{node.unit}_{node.position}"


def _node(graph: PrunedGraph, number: int, name: str, layers: int, top: float) -> dict[str, Any]:
    node, effect = graph.nodes[number], graph.effects.get(number)
    layer = {"token": "E", "logit": str(layers + 1)}.get(node.kind, str(node.layer))
    start = node.layer or 0
    feature = {
        "feature": (start + node.unit) * (start + node.unit + 1) // 2 + node.unit,  # Cantor's pairing
        "error": -1,
        "token": node.position,
        "logit": node.unit,
    }[node.kind]
    kinds = {"feature": "cross layer transcoder", "error": "mlp reconstruction error", "token": "embedding", "logit": "logit"}
    clerp = f'Output "{node.text}" (p={node.probability:.3f})' if node.kind == "logit" else node.text
    place = 0 if node.kind == "feature" else node.position
    return {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": kinds[node.kind],
        "token_prob": node.probability,
        "is_target_logit": node.kind == "logit" and node.probability == top,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{'L' if node.kind == 'logit' else layer}_{-1 if node.kind == 'error' else node.unit}-{place}",
        "clerp": clerp,
        "influence": None if node.kind == "logit" else graph.influence[number],
        "activation": node.value if node.kind == "feature" else None,
        "effect": None if effect is None else effect.measured,
    }


def graphml(graph: PrunedGraph) -> str:
    """The graph in GraphML, as Gephi, Cytoscape, yEd and networkx read it."""
    fields = {
        "ref": ("node", "string"),
        "kind": ("node", "string"),
        "layer": ("node", "int"),
        "position": ("node", "int"),
        "text": ("node", "string"),
        "value": ("node", "double"),
        "influence": ("node", "double"),
        "effect": ("node", "double"),
        "weight": ("edge", "double"),
        "measured": ("edge", "double"),
        "verified": ("edge", "boolean"),
    }
    nodes = []
    for number, node in enumerate(graph.nodes):
        effect = graph.effects.get(number)
        data = {name: getattr(node, name) for name in ("ref", "kind", "layer", "position", "text", "value")}
        nodes.append(data | {"influence": graph.influence[number], "effect": None if effect is None else effect.measured})
    edges = [
        (link.source, link.target, {"weight": link.weight, "measured": link.measured, "verified": link.verified})
        for link in graph.links
    ]
    return as_graphml(fields, nodes, edges)


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"


GRAPH_FORMATS: Registry[Callable[[PrunedGraph], str]] = Registry(
    "graph format",
    {
        "circuit-tracer": lambda graph: _json(circuit_tracer(graph)),
        "graphml": graphml,
        "json": lambda graph: _json(graph.to_dict()),
    },
)
"""Formats of graphs: a function that returns the text of a file."""


def write_graph(graph: PrunedGraph, path: str | Path, format: str = "circuit-tracer") -> Path:
    """Write a graph to a file, whole or not at all.

    Raises:
        ConfigError: there is no such format.
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, GRAPH_FORMATS.find(format)(graph))
    return path
