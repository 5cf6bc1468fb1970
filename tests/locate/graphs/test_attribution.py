"""Attribution graphs against an intervention by plain hooks in which everything that is not linear is frozen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, StoreMismatch, UnsupportedModel
from saekit.lm import LanguageModel
from saekit.locate.graphs import AttributionGraph, GraphSettings, Node, attribution_graph
from saekit.sae import SAE
from tests.kit import frozen

TOKENS = torch.tensor([[1, 11, 24, 37, 11, 6, 41, 8]])
ALL = GraphSettings(row_share=1.0, keep_first=True, logit_probability=0.3)
CASES = [(family, "skip_transcoder") for family in frozen.FAMILIES]
CASES += [("llama", "jumprelu_transcoder"), ("gpt2", "clt"), ("gemma2", "clt")]


def _dictionaries(kind: str) -> list[SAE]:
    return [frozen.clt()] if kind == "clt" else [frozen.transcoder(layer, kind) for layer in (0, 2)]  # layer 1 has none


def _vectors(graph: AttributionGraph, source: Node, dictionaries: Sequence[SAE]) -> dict[int, Tensor]:
    """What a feature writes to the MLP outputs, by layer."""
    assert source.layer is not None
    sae = next(each for each in dictionaries if any(site.layer == source.layer for site in each.cfg.reads if site))
    parts = sae.W_dec[source.unit].split(sae.cfg.widths_out)
    return {site.layer: source.value * part for site, part in zip(sae.cfg.writes, parts) if site and site.layer is not None}


def _change(
    oracle: frozen.FrozenByHooks, graph: AttributionGraph, source: Node, dictionaries: Sequence[SAE]
) -> tuple[dict[int, Tensor], Tensor]:
    """How MLP inputs and logits change when a source is there once more."""
    T = len(graph.tokens)
    added = torch.zeros(T, frozen.D, dtype=torch.float64)
    if source.kind == "token":
        added[source.position] = oracle.base_embedded[0, source.position]
        after = oracle.run(embedded=added)
    else:
        if source.kind == "feature":
            vectors = _vectors(graph, source, dictionaries)
        else:
            assert source.layer is not None
            vectors = {source.layer: _error(oracle, source, dictionaries)}
        changes = {layer: added.index_fill(0, torch.tensor([source.position]), 0.0) for layer in vectors}
        for layer, vector in vectors.items():
            changes[layer][source.position] = vector
        after = oracle.run(mlp_out=changes)
    before = oracle.run()
    return {layer: after[0][layer] - before[0][layer] for layer in after[0]}, after[1] - before[1]


def _error(oracle: frozen.FrozenByHooks, source: Node, dictionaries: Sequence[SAE]) -> Tensor:
    """The MLP output less the dense reconstruction."""
    layer, t = source.layer, source.position
    assert layer is not None
    y = oracle.base_out[layer][0, t]
    for sae in dictionaries:
        layers = [site.layer for site in sae.cfg.reads if site]
        if layer in layers:
            x = torch.cat([oracle.base_in[each][0, t] for each in layers if each is not None])
            out = sae.decode(sae.encode_dense(x[None]), x[None])[0]
            return y - out.split(sae.cfg.widths_out)[layers.index(layer)]
    return y


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_once_more_of_a_source_changes_targets_by_its_column(family: str, kind: str) -> None:
    lm, dictionaries = frozen.model(family), _dictionaries(kind)
    graph = attribution_graph(lm, TOKENS, dictionaries=dictionaries, settings=ALL, progress=False)
    skips = {
        site.layer: sae.get_parameter("W_skip") for sae in dictionaries for site in sae.cfg.reads if site and sae.cfg.row.skips
    }
    oracle = frozen.FrozenByHooks(lm, TOKENS, {layer: W for layer, W in skips.items() if layer is not None})
    matrix = graph.matrix.toarray()
    random = np.random.default_rng(0)
    features = [n for n, node in enumerate(graph.nodes) if node.kind == "feature"]
    assert len(features) > 30
    others = [n for n, node in enumerate(graph.nodes) if node.kind in ("error", "token")]
    for number in [*random.choice(features, 6, replace=False), *random.choice(others, 6, replace=False), others[-1], others[2]]:
        reads, logits = _change(oracle, graph, graph.nodes[number], dictionaries)
        measured = np.zeros(len(graph.nodes))
        for n, node in enumerate(graph.nodes):
            if node.kind == "feature" and node.layer is not None:
                sae = next(each for each in dictionaries if any(site.layer == node.layer for site in each.cfg.reads if site))
                measured[n] = float(reads[node.layer][node.position] @ sae.W_enc[:, node.unit])
            elif node.kind == "logit":
                measured[n] = float(logits[node.position, node.unit] - logits[node.position].mean())
        is_logit = graph.kinds == "logit"
        assert measured[is_logit] == pytest.approx(matrix[is_logit, number], abs=1e-5)
        assert measured == pytest.approx(matrix[:, number], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", frozen.FAMILIES)
def test_rows_sum_to_the_values(family: str) -> None:
    graph = attribution_graph(
        frozen.model(family), TOKENS, dictionaries=_dictionaries("skip_transcoder"), settings=ALL, progress=False
    )
    sums = np.asarray(graph.matrix.sum(1)).ravel()
    for node, total in zip(graph.nodes, sums):
        if node.kind == "logit":
            assert total + node.constant == pytest.approx(node.value, rel=1e-4, abs=1e-4)
    assert graph.facts["gap"] < 1e-5 and graph.facts["share_kept"] == pytest.approx(1)


def test_logits_are_those_of_the_model() -> None:
    lm = frozen.model("gemma2")
    graph = attribution_graph(lm, TOKENS, dictionaries=_dictionaries("clt"), settings=ALL, progress=False)
    p = lm.run(TOKENS).logits[0, -1].softmax(-1)
    logits = [node for node in graph.nodes if node.kind == "logit"]
    assert [node.unit for node in logits] == p.argsort(descending=True)[: len(logits)].tolist()
    assert [node.probability for node in logits] == pytest.approx(p.sort(descending=True).values[: len(logits)].tolist())
    assert sum(node.probability for node in logits[:-1]) < 0.3 or len(logits) == 1


def test_few_feature_nodes_are_those_of_most_influence_and_rows_stay_short() -> None:
    lm, dictionaries = frozen.model("llama"), _dictionaries("jumprelu_transcoder")
    whole = attribution_graph(lm, TOKENS, dictionaries=dictionaries, settings=ALL, progress=False)
    few = GraphSettings(row_share=0.9, row_entries=20, keep_first=True, logit_probability=0.3, max_feature_nodes=15, memory=1)
    part = attribution_graph(lm, TOKENS, dictionaries=dictionaries, settings=few, progress=False)
    assert int((part.kinds == "feature").sum()) == 15 and part.matrix.getnnz(1).max() <= 20
    ranked = sorted((-share, node.ref) for share, node in zip(whole.influence, whole.nodes) if node.kind == "feature")
    strongest = {ref for _, ref in ranked[:5]}
    assert len(strongest & {node.ref for node in part.nodes}) >= 4
    assert 0 < part.facts["unexpanded"] < 1 and 0 < part.facts["share_kept"] < 1


def test_special_and_first_tokens_are_errors_by_default() -> None:
    graph = attribution_graph(frozen.model("llama"), TOKENS, dictionaries=_dictionaries("clt"), progress=False)
    assert min(node.position for node in graph.nodes if node.kind == "feature") == 1


def test_what_does_not_fit_is_refused(stories_lm: LanguageModel, make_sae) -> None:  # type: ignore[no-untyped-def]
    lm = frozen.model("llama")
    with pytest.raises(ConfigError, match="none is attached"):
        attribution_graph(lm, TOKENS, progress=False)
    with pytest.raises(ConfigError, match="Two dictionaries"):
        attribution_graph(lm, TOKENS, dictionaries=[frozen.transcoder(1), frozen.transcoder(1)], progress=False)
    with pytest.raises(ConfigError, match="does not replace an MLP"):
        attribution_graph(lm, TOKENS, dictionaries=[make_sae("standard", 16, 20, site="resid_post.0")], progress=False)
    with pytest.raises(StoreMismatch, match="wide"):
        attribution_graph(lm, TOKENS, dictionaries=[frozen.transcoder(0, d=8)], progress=False)
    with pytest.raises(ConfigError, match="empty"):
        attribution_graph(lm, [], dictionaries=[frozen.transcoder(0)], progress=False)


def test_a_model_that_is_not_linear_when_frozen_is_refused() -> None:
    lm = frozen.model("llama")
    handle = lm.model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda module, args, y: y + y**3)
    try:
        with pytest.raises(UnsupportedModel, match="is not linear"):
            attribution_graph(lm, TOKENS, dictionaries=[frozen.clt()], settings=ALL, progress=False)
    finally:
        handle.remove()
