"""What `saekit circuit --method attribution_graph` runs."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from saekit.cli.circuit_methods import CircuitFound, CircuitRequest
from saekit.cli.subject import Subject
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.locate.graphs import PrunedGraph
    from saekit.sae import SAE


def attribution_graph(subject: Subject, request: CircuitRequest) -> CircuitFound:
    """The pruned and verified attribution graph of a prompt."""
    from saekit.locate import graphs
    from saekit.locate.graphs import GRAPH_FORMATS
    from saekit.report.graph import write_graph_page
    from saekit.workspace import graphs as kept

    chosen = request.options({"nodes": 0.8, "edges": 0.98, "verify": True, **asdict(graphs.GraphSettings())})
    nodes, edges, verify = chosen.pop("nodes"), chosen.pop("edges"), chosen.pop("verify")
    settings = graphs.GraphSettings(**chosen)
    ws = subject.workspace
    dictionaries = _dictionaries(subject, request)
    assert request.prompt is not None
    lm = subject.lm
    graph = graphs.attribution_graph(lm, request.prompt, dictionaries=dictionaries, settings=settings, progress=request.progress)
    shown = graph.pruned(nodes, edges)
    if verify:
        shown = graphs.verified(lm, graph, shown, dictionaries=dictionaries, progress=request.progress)
    keep = None
    if ws is not None:
        shown = shown.labelled(kept.labels(ws, shown))
        keep = partial(kept.keep_as, ws, graph=shown, prompt=request.prompt)
    files = {name: (lambda write=write: write(shown)) for name, write in GRAPH_FORMATS.items()}
    return CircuitFound(shown.to_dict(), _rows(shown), _summary(shown), files, lambda path: write_graph_page(shown, path), keep)


def _dictionaries(subject: Subject, request: CircuitRequest) -> list[SAE]:
    """The transcoders that were named, or those of the workspace."""
    from saekit.sae import SAE
    from saekit.workspace import graphs as kept

    if request.dictionaries:
        return [SAE.load(source, device=subject.lm.device) for source in request.dictionaries]
    if subject.workspace is None:
        raise ConfigError(
            "No --dictionary is given, and an attribution graph is made of transcoder features.", kept.TRANSCODERS_HINT
        )
    return kept.transcoders(subject.workspace)


def _rows(graph: PrunedGraph) -> list[dict[str, Any]]:
    """The nodes that are no tokens and no logits, the most influential ones first."""
    order = sorted(range(len(graph.nodes)), key=lambda n: graph.influence[n])
    rows = []
    for n in order:
        node, effect = graph.nodes[n], graph.effects.get(n)
        if node.kind in ("feature", "error"):
            rows.append(
                {
                    "node": node.ref,
                    "token": graph.pieces[node.position],
                    "label": node.text,
                    "value": node.value,
                    "influence": graph.influence[n],
                    "predicted": "" if effect is None else effect.predicted,
                    "effect": "" if effect is None else effect.measured,
                }
            )
    return rows


def _summary(graph: PrunedGraph) -> list[str]:
    facts = graph.facts
    logits = [f"{node.text!r} {node.probability:.1%}" for node in graph.nodes if node.kind == "logit"]
    found = [
        f"next tokens: {', '.join(logits)}",
        f"replacement score {facts['replacement_score']:.3f}, completeness score {facts['completeness_score']:.3f}; "
        f"{len(graph.nodes)} nodes and {len(graph.links)} links of {facts['active_features']:,} active features",
    ]
    if "verified_links" in facts:
        found.append(
            f"{facts['verified_links']} of {len(graph.links)} links verified in the frozen model; {facts['confirmed_nodes']} of "
            f"{facts['tested_nodes']} nodes confirmed by their removal with nothing frozen"
        )
    return found
