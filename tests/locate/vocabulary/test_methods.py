"""Rankings by projection, on planted circuits and against the unembedding."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.locate.methods import rank
from saekit.names.ref import Ref
from saekit.tasks import Task


def task(answer: int, foil: int) -> Task:
    return Task("planted", ((3, 4), (5, 6)), ((3, 5), (5, 7)), ((answer,), (answer,)), ((foil,), (foil,)))


def test_the_neuron_that_writes_the_answer_is_first(planted: LanguageModel) -> None:
    found = rank(planted, task(11, 2), "vocabulary_projection", spaces=["neurons"], progress=False)
    assert found.top(1).refs[0] == Ref.neuron(0, 5)
    reverse = rank(planted, task(2, 11), "vocabulary_projection", progress=False)
    assert reverse.scores == pytest.approx([-score for score in found.scores])


def test_a_score_is_the_difference_of_two_logits(tiny_llama: LanguageModel) -> None:
    found = rank(tiny_llama, task(11, 20), "vocabulary_projection", spaces=["neurons"], layers=[1], progress=False)
    direction = tiny_llama.blocks[1].mlp.down_proj.weight[:, 17]  # type: ignore[union-attr, index]
    logits = tiny_llama.unembed(1000 * direction[None])[0]
    assert found[Ref.neuron(1, 17)] == pytest.approx(float(logits[11] - logits[20]), rel=1e-4)


def test_heads_are_ranked_by_copying(planted: LanguageModel) -> None:
    found = rank(planted, None, "ov_copying", options={"top": "1"}, progress=False)
    assert dict(zip(found.refs, found.scores)) == {Ref.head(0, 0): 1.0, Ref.head(0, 1): 0.0}
    values = rank(planted, None, "ov_copying", options={"score": "eigenvalues"}, progress=False)
    assert torch.tensor(values.scores).tolist() == pytest.approx([1.0, -1.0])


def test_what_has_no_direction_or_position_is_refused(planted: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="one direction"):
        rank(planted, task(11, 2), "vocabulary_projection", spaces=["heads"], progress=False)
    with pytest.raises(ConfigError, match="has no positions"):
        rank(planted, task(11, 2), "vocabulary_projection", positions="each", progress=False)
    with pytest.raises(ConfigError, match="compares an answer"):
        rank(planted, task(11, 2), "vocabulary_projection", metric="log_probability", progress=False)
    with pytest.raises(ConfigError, match="no copying score"):
        rank(planted, None, "ov_copying", options={"score": "best"}, progress=False)
    with pytest.raises(ConfigError, match="No space holds heads"):
        rank(planted, None, "ov_copying", spaces=["neurons"], progress=False)
