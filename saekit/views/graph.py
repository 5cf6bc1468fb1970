"""What the page of an attribution graph shows, as a plain dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekit.locate.graphs.graph import Node, PrunedGraph

_NAMES = {"feature": "feature", "error": "error of the MLP", "token": "token", "logit": "next token"}


def graph_view(graph: PrunedGraph) -> dict[str, Any]:
    """Nodes by layer and position, links, scores and settings."""
    facts = graph.facts
    layers = int(facts.get("layers", 0))
    nodes = [_node(graph, number, layers) for number in range(len(graph.nodes))]
    links = [
        {
            "source": link.source,
            "target": link.target,
            "from": nodes[link.source]["name"],
            "to": nodes[link.target]["name"],
            "weight": link.weight,
            "measured": link.measured,
            "verified": bool(link.verified),
        }
        for link in graph.links
    ]
    best = max((node for node in graph.nodes if node.kind == "logit"), key=lambda node: node.probability, default=None)
    return {
        "title": "Attribution graph",
        "lead": f"Why {facts.get('model', 'the model')} continues “{''.join(graph.pieces)}” with “{best.text if best else ''}”",
        "tokens": list(graph.pieces),
        "layers": layers,
        "nodes": nodes,
        "links": links,
        "figures": _figures(graph),
        "settings": _settings(facts),
        "remarks": _remarks(graph),
    }


def _node(graph: PrunedGraph, number: int, layers: int) -> dict[str, Any]:
    node, effect = graph.nodes[number], graph.effects.get(number)
    rows = {"token": 0, "logit": layers + 1}
    return {
        "number": number,
        "kind": node.kind,
        "kind_name": _NAMES[node.kind],
        "name": _name(node, graph.pieces),
        "ref": node.ref,
        "row": rows.get(node.kind, 1 + (node.layer or 0)),
        "position": node.position,
        "token": graph.pieces[node.position],
        "label": node.text,
        "value": node.value,
        "probability": node.probability,
        "influence": graph.influence[number],
        "predicted": None if effect is None else effect.predicted,
        "measured": None if effect is None else effect.measured,
        "confirmed": None if effect is None else effect.confirmed,
    }


def _name(node: Node, pieces: tuple[str, ...]) -> str:
    """A short name for lists."""
    token = pieces[node.position]
    if node.kind == "logit":
        return f"“{node.text}” {node.probability:.0%}"
    if node.kind == "token":
        return f"token “{token}”"
    if node.kind == "error":
        return f"error {node.layer} at “{token}”"
    return f"{node.layer}/{node.unit} {node.text}".rstrip() + f" at “{token}”"


def _figures(graph: PrunedGraph) -> list[dict[str, str]]:
    facts = graph.facts
    features = sum(node.kind == "feature" for node in graph.nodes)

    def tile(value: str, measure: str, note: str = "") -> dict[str, str]:
        return {"value": value, "measure": measure, "note": note}

    found = [
        tile(f"{facts['replacement_score']:.2f}", "replacement score", "share of influence that reaches tokens, not errors"),
        tile(f"{facts['completeness_score']:.2f}", "completeness score", "share of inputs that come from no error"),
        tile(f"{features:,}", "features shown", f"of {facts.get('active_features', features):,} active"),
    ]
    if "verified_links" in facts:
        found.append(tile(f"{facts['verified_links']:,} of {len(graph.links):,}", "links verified", "in the frozen model"))
        tested = f"{facts['confirmed_nodes']:,} of {facts['tested_nodes']:,}"
        found.append(tile(tested, "nodes confirmed", "removed with nothing frozen"))
    return found


def _settings(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    shown = {
        "model": facts.get("model"),
        "dictionaries": ", ".join(facts.get("dictionaries", ())),
        "share of nodes' influence kept": facts.get("node_threshold"),
        "share of links' influence kept": facts.get("edge_threshold"),
        "least share of a row that is stored": f"{facts.get('share_kept', 1.0):.3f}",
        "share of inputs from features without a node": f"{facts.get('unexpanded', 0.0):.3f}",
        "largest relative gap between a value and the sum of its inputs": f"{facts.get('gap', 0.0):.1e}",
        "date": facts.get("date"),
    }
    return [{"name": name, "value": str(value)} for name, value in shown.items() if value not in (None, "")]


def _remarks(graph: PrunedGraph) -> list[str]:
    found = []
    if (score := graph.facts.get("replacement_score", 1.0)) < 0.5:
        found.append(
            f"Errors carry {1 - score:.0%} of the influence: the dictionaries explain less than half of this prediction."
        )
    wrong = sum(link.verified is False for link in graph.links)
    if wrong:
        found.append(f"Links that differ from their measured change: {wrong}. They are drawn dashed.")
    against = sum(not effect.confirmed for effect in graph.effects.values())
    if against:
        found.append(
            f"Nodes that move the logits against the graph's prediction when they are removed with nothing frozen: {against}. "
            "They are drawn hollow."
        )
    return found
