"""Graphs of features: attribution graphs of transcoders, and feature circuits of SAEs with error nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.graphs.attribution import GraphSettings, attribution_graph
    from saekit.locate.graphs.export import GRAPH_FORMATS, write_graph
    from saekit.locate.graphs.faithfulness import feature_faithfulness, nodes_needed
    from saekit.locate.graphs.features import feature_circuit, feature_edges
    from saekit.locate.graphs.graph import AttributionGraph, Effect, Link, Node, PrunedGraph
    from saekit.locate.graphs.verify import verified

__all__ = [
    "GRAPH_FORMATS",
    "AttributionGraph",
    "Effect",
    "GraphSettings",
    "Link",
    "Node",
    "PrunedGraph",
    "attribution_graph",
    "feature_circuit",
    "feature_edges",
    "feature_faithfulness",
    "nodes_needed",
    "verified",
    "write_graph",
]

_HOMES = {
    **dict.fromkeys(["AttributionGraph", "Effect", "Link", "Node", "PrunedGraph"], "saekit.locate.graphs.graph"),
    **dict.fromkeys(["GraphSettings", "attribution_graph"], "saekit.locate.graphs.attribution"),
    **dict.fromkeys(["GRAPH_FORMATS", "write_graph"], "saekit.locate.graphs.export"),
    **dict.fromkeys(["feature_circuit", "feature_edges"], "saekit.locate.graphs.features"),
    **dict.fromkeys(["feature_faithfulness", "nodes_needed"], "saekit.locate.graphs.faithfulness"),
    "verified": "saekit.locate.graphs.verify",
}
__getattr__ = attributes(__name__, _HOMES)
