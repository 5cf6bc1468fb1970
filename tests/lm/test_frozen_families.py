"""With patterns, scales of norms and MLP outputs frozen, a model of every family is linear, and interventions show its links."""

from __future__ import annotations

import torch

from saekit.lm import LanguageModel
from saekit.locate.graphs import GraphSettings, attribution_graph, verified
from tests.kit import frozen


def test_attribution_graphs_hold(tiny: LanguageModel, tokens: torch.Tensor) -> None:
    dictionaries = [frozen.transcoder(layer, d=tiny.d_model).float() for layer in range(tiny.n_layers)]
    settings = GraphSettings(row_share=1.0, logit_probability=0.2, max_feature_nodes=15)
    graph = attribution_graph(tiny, tokens[:1], dictionaries=dictionaries, settings=settings, progress=False)
    assert graph.facts["gap"] < 1e-4
    shown = verified(tiny, graph, graph.pruned(0.5, 0.8), dictionaries=dictionaries, progress=False)
    assert shown.links and all(link.verified for link in shown.links)
