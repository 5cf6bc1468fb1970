"""Influence, scores and pruning against dense formulas; verification, and files of graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saekit.errors import ConfigError
from saekit.locate.graphs import AttributionGraph, GraphSettings, PrunedGraph, attribution_graph, verified, write_graph
from saekit.locate.graphs.export import circuit_tracer
from tests.kit import frozen

TOKENS = torch.tensor([[1, 11, 24, 37, 11, 6, 41, 8]])
Dense = NDArray[np.float64]


@pytest.fixture(scope="module", params=["llama-clt", "gemma2-transcoders"])
def made(request: pytest.FixtureRequest) -> tuple[Any, list[Any], AttributionGraph]:
    family, kind = request.param.split("-")
    dictionaries = [frozen.clt()] if kind == "clt" else [frozen.transcoder(layer) for layer in (0, 2)]
    lm = frozen.model(family)
    settings = GraphSettings(row_share=1.0, logit_probability=0.3)
    return lm, dictionaries, attribution_graph(lm, TOKENS, dictionaries=dictionaries, settings=settings, progress=False)


@pytest.fixture(scope="module")
def shown(made: tuple[Any, list[Any], AttributionGraph]) -> PrunedGraph:
    lm, dictionaries, graph = made
    return verified(lm, graph, graph.pruned(), dictionaries=dictionaries, progress=False)


def _rows_of_one(A: Dense) -> Dense:
    return np.abs(A) / np.maximum(np.abs(A).sum(1, keepdims=True), 1e-10)


def _influence(A: Dense, w: Dense) -> Dense:
    """w (I - B)^-1 - w for the row-normalised B."""
    return np.asarray(np.linalg.solve((np.eye(len(w)) - _rows_of_one(A)).T, w) - w)


def test_influence_and_scores_are_those_of_the_inverse(made: tuple[Any, list[Any], AttributionGraph]) -> None:
    _, _, graph = made
    A, w = graph.matrix.toarray().astype(float), graph.weights
    found = _influence(A, w)
    assert graph.influence == pytest.approx(found, abs=1e-9)
    token, error = (found[graph.kinds == kind].sum() for kind in ("token", "error"))
    assert graph.replacement_score == pytest.approx(token / (token + error))
    from_errors = _rows_of_one(A)[:, graph.kinds == "error"].sum(1)
    assert graph.completeness_score == pytest.approx(((1 - from_errors) * (found + w)).sum() / (found + w).sum())


def _largest(scores: Dense, share: float) -> Dense:
    ordered = np.sort(scores.ravel())[::-1]
    last = min(np.searchsorted(np.cumsum(ordered) / ordered.sum(), share), len(ordered) - 1)
    return scores >= ordered[last]


@pytest.mark.parametrize(("nodes", "edges"), [(0.8, 0.98), (0.5, 0.7), (1.0, 1.0)])
def test_pruning_is_that_of_the_dense_algorithm(
    made: tuple[Any, list[Any], AttributionGraph], nodes: float, edges: float
) -> None:
    _, _, graph = made
    A, w, kinds = graph.matrix.toarray().astype(float), graph.weights, graph.kinds
    fixed = (kinds == "token") | (kinds == "logit")
    keep = _largest(_influence(A, w), nodes) | fixed
    left = A * keep[:, None] * keep
    scores = _rows_of_one(left) * (_influence(left, w) + w)[:, None]
    edge = _largest(scores, edges) & (scores > 0)
    for _ in range(20):
        keep &= fixed | edge.any(0)
        keep &= (kinds != "feature") | edge.any(1)
        edge &= keep[:, None] & keep
    pruned = graph.pruned(nodes, edges)
    assert [node.ref for node in pruned.nodes] == [node.ref for n, node in enumerate(graph.nodes) if keep[n]]
    refs = {(pruned.nodes[link.source].ref, pruned.nodes[link.target].ref): link.weight for link in pruned.links}
    wanted = {(graph.nodes[s].ref, graph.nodes[t].ref): A[t, s] for t, s in zip(*edge.nonzero())}
    assert refs == pytest.approx(wanted)


def test_every_link_that_is_shown_is_verified(made: tuple[Any, list[Any], AttributionGraph], shown: PrunedGraph) -> None:
    assert shown.links and all(link.verified for link in shown.links)
    assert shown.facts["verified_links"] == len(shown.links)


def test_a_wrong_weight_is_not_verified(made: tuple[Any, list[Any], AttributionGraph]) -> None:
    import dataclasses

    lm, dictionaries, graph = made
    pruned = graph.pruned()
    first = dataclasses.replace(pruned.links[0], weight=-pruned.links[0].weight)
    wrong = dataclasses.replace(pruned, links=(first, *pruned.links[1:]))
    found = verified(lm, graph, wrong, dictionaries=dictionaries, progress=False)
    assert not found.links[0].verified and found.links[0].measured == pytest.approx(pruned.links[0].weight, rel=1e-3)


def test_effects_are_those_of_the_model_without_the_node(
    made: tuple[Any, list[Any], AttributionGraph], shown: PrunedGraph
) -> None:
    from saekit.lm.run.edits import Edit

    lm, dictionaries, graph = made
    number, node = next((n, node) for n, node in enumerate(shown.nodes) if node.kind == "feature" and node.layer == 2)
    sae = dictionaries[-1]
    vector = node.value * sae.W_dec[node.unit, -frozen.D :]
    site = f"mlp_out.{node.layer}"
    off = Edit(lm.site(site), lambda x, at: x - (at.position_N == node.position)[:, None] * vector)
    logits = torch.cat([lm.run(TOKENS, edits=edits).logits for edits in ([], [off])])[:, -1]
    cap = lm.readout.softcap
    logits = torch.atanh(logits / cap) * cap if cap else logits
    chosen = [each for each in graph.nodes if each.kind == "logit"]
    change = sum(each.probability * (logits[0] - logits[0].mean() - logits[1] + logits[1].mean())[each.unit] for each in chosen)
    assert shown.effects[number].measured == pytest.approx(float(change), rel=1e-4, abs=1e-6)


SCHEMA: dict[str, dict[str, Any]] = {
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "qParams": {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str},
    "node": {
        "node_id": str,
        "feature": (int, type(None)),
        "layer": (str, int),
        "ctx_idx": int,
        "feature_type": str,
        "jsNodeId": str,
        "clerp": str,
        "influence": (float, int, type(None)),
        "activation": (float, int, type(None)),
        "token_prob": (float, int),
        "is_target_logit": bool,
        "run_idx": int,
        "reverse_ctx_idx": int,
    },
    "link": {"source": str, "target": str, "weight": (float, int)},
}
"""Fields and types of Neuronpedia's graph-schema.json and of circuit-tracer's graph_models.py."""


def _fits(value: dict[str, Any], part: str) -> bool:
    return all(isinstance(value[name], kinds) for name, kinds in SCHEMA[part].items())


def test_the_common_json_has_the_fields_of_its_schema(shown: PrunedGraph, tmp_path: Path) -> None:
    data = json.loads(write_graph(shown, tmp_path / "graph.json").read_text())
    assert data.keys() == {"metadata", "qParams", "nodes", "links"}
    assert _fits(data["metadata"], "metadata") and _fits(data["qParams"], "qParams")
    assert all(_fits(node, "node") for node in data["nodes"]) and all(_fits(link, "link") for link in data["links"])
    assert len(data["metadata"]["prompt_tokens"]) == TOKENS.shape[1]
    ids = {node["node_id"]: node for node in data["nodes"]}
    assert len(ids) == len(data["nodes"]) == len({(node["jsNodeId"], node["ctx_idx"]) for node in data["nodes"]})
    assert all(link["source"] in ids and link["target"] in ids for link in data["links"])
    for node in data["nodes"]:
        start, unit, position = node["node_id"].split("_")
        assert int(position) == node["ctx_idx"] and start == node["layer"]
        if node["feature_type"] == "cross layer transcoder":
            total = int((np.sqrt(8 * node["feature"] + 1) - 1) // 2)  # the inverse of Cantor's pairing
            assert node["feature"] - total * (total + 1) // 2 == int(unit)
            assert total - int(unit) == int(start)
    assert {node["feature_type"] for node in data["nodes"]} <= {
        "cross layer transcoder",
        "mlp reconstruction error",
        "embedding",
        "logit",
    }
    assert [node["is_target_logit"] for node in data["nodes"]].count(True) == 1


def test_graphml_and_json_hold_the_same_graph(shown: PrunedGraph, tmp_path: Path) -> None:
    import networkx

    text = write_graph(shown.labelled({shown.nodes[0].ref.partition("[")[0]: 'a "label" <\x00>'}), tmp_path / "g.xml", "graphml")
    ElementTree.parse(text)
    graph = networkx.read_graphml(text)
    assert len(graph.nodes) == len(shown.nodes) and len(graph.edges) == len(shown.links)
    assert graph.nodes["n0"]["text"] == 'a "label" <\\x00>'
    link = shown.links[0]
    assert graph.edges[f"n{link.source}", f"n{link.target}"]["weight"] == pytest.approx(link.weight)
    plain = json.loads(write_graph(shown, tmp_path / "g.json", "json").read_text())
    assert [node["ref"] for node in plain["nodes"]] == [node.ref for node in shown.nodes]
    with pytest.raises(ConfigError, match="graphml"):
        write_graph(shown, tmp_path / "g", "graphm")
    assert not circuit_tracer(shown)["qParams"]["pinnedIds"]
