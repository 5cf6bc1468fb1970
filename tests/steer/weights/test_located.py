"""Layers of edits from rankings."""

from __future__ import annotations

import pytest

from saekit.errors import ConfigError, InterventionError
from saekit.lm import LanguageModel
from saekit.locate.causal import prompt_task, trace
from saekit.steer.weights import EditOptions, KeyStatistics, edit, ranked_layers
from saekit.tasks import Ranking
from tests.steer.weights.conftest import FACTS

QUICK = EditOptions(contexts=0, steps=2)


def test_a_layer_counts_with_what_was_found_in_its_mlp() -> None:
    scores = {
        "neuron:2/1": 1.0,
        "neuron:2/7": 1.5,
        "site:mlp_out.1[3]": 2.0,
        "neuron:0/4": 0.5,
        "neuron:0/5": -9.0,
        "head:3.1": 50.0,
        "site:resid_post.3": 60.0,
    }
    ranking = Ranking(tuple(scores), tuple(scores.values()))  # type: ignore[arg-type]
    assert ranked_layers(ranking) == [2]
    assert ranked_layers(ranking, 2) == [1, 2]
    assert ranked_layers(ranking, 9) == [0, 1, 2]


def test_an_edit_takes_the_layers_of_a_ranking(lm: LanguageModel, statistics: KeyStatistics) -> None:
    found = trace(lm, prompt_task(lm, FACTS[0].prompt, FACTS[0].subject, None), restore="mlp", window=1, by="role").ranking
    (best,) = ranked_layers(found)
    assert edit(lm, FACTS[:1], statistics, found, "rome", options=QUICK).facts["layers"] == [best]
    assert edit(lm, FACTS[:1], statistics, found, "memit", options=QUICK).facts["layers"] == ranked_layers(found, 3)
    absent = Ranking(("neuron:5/0",), (1.0,))  # type: ignore[arg-type]
    with pytest.raises(InterventionError, match="no layer 5"):
        edit(lm, FACTS[:1], statistics, absent, "rome", options=QUICK)


def test_a_ranking_without_mlps_is_refused(lm: LanguageModel, statistics: KeyStatistics) -> None:
    heads = Ranking(("head:0.1", "neuron:1/2"), (1.0, -1.0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no object of an MLP"):
        edit(lm, FACTS, statistics, heads)
    with pytest.raises(ConfigError, match="0 layers"):
        ranked_layers(heads, 0)
