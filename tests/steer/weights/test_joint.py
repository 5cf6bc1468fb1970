"""The joint method: its fit is what the delta does, it spares other texts, and it works in every kind of MLP."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saekit.activations.corpus.base import Corpus
from saekit.errors import ConfigError
from saekit.lm import LanguageModel, Site
from saekit.steer.weights import EditOptions, Fact, KeyStatistics, WeightDelta, edit
from saekit.steer.weights.joint import phrasing_keys
from saekit.steer.weights.keys import down_projection
from saekit.steer.weights.prompts import continued
from saekit.steer.weights.values import Contexts, texts_before
from tests.kit.tiny import make_lm
from tests.lm.conftest import attach
from tests.steer.weights.conftest import FACTS

# The outputs of random MLPs are small beside the residual stream: preserve and rate make room for what moves the prediction.
FAST = EditOptions(contexts=1, steps=40, rate=20.0, kl=0.0, decay=0.0, preserve=1e-6)
KEEP = [[n, n + 1, n + 5, n + 2, n + 9] for n in range(20, 40)]


def probability(lm: LanguageModel, fact: Fact, prompt: str) -> float:
    """Of the target's first token, by a plain run."""
    logits = lm.run(lm.text.ids([prompt]), logits="last").logits
    assert logits is not None
    return float(logits[0].softmax(-1)[continued(lm, prompt, fact.target)[0]])


def all_logits(lm: LanguageModel, rows: list[list[int]]) -> Tensor:
    found = lm.run(torch.tensor(rows), logits="all").logits
    assert found is not None
    return found.log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_what_is_fitted_is_what_the_delta_does(family: str, corpus: Corpus) -> None:
    lm = LanguageModel.attach(attach(family).model, make_lm().tokenizer, bos="no")
    statistics = KeyStatistics.collect(lm, corpus, [0, 1], n_tokens=600, progress=False)
    facts = [replace(FACTS[0], target="w9", paraphrases=(), neighbourhood=()), replace(FACTS[1], target="w13")]
    before = {name: each.clone() for name, each in lm.model.named_parameters()}
    delta = edit(lm, facts, statistics, [0, 1], "joint", options=replace(FAST, contexts=0))
    assert all(torch.equal(each, before[name]) for name, each in lm.model.named_parameters())
    # One key for each phrasing: the first fact has one, the second two.
    assert len(delta.names) == 2 and {delta.rank(name) for name in delta.names} == {3}
    with lm.edited(delta):
        for fact, record in zip(facts, delta.facts["facts"]):
            prompts = (fact.prompt, *fact.rephrasings)
            found = sum(probability(lm, fact, prompt) for prompt in prompts) / len(prompts)
            assert found == pytest.approx(record["fitted"], rel=1e-3)
            assert record["fitted"] > 10 * record["before"]
    names = {name for name, each in lm.model.named_parameters() if any(each is down_projection(lm, n).weight for n in (0, 1))}
    assert set(delta.names) == names


def test_the_keys_are_those_of_the_last_token_of_each_phrasing(lm: LanguageModel) -> None:
    before = texts_before(lm, 2)
    contexts = [Contexts.of(lm, fact, before) for fact in FACTS]
    keys_IN = phrasing_keys(lm, contexts, 1)
    assert keys_IN.shape[1] == 3
    expected = []
    for prompt in (FACTS[0].prompt, FACTS[1].prompt, *FACTS[1].rephrasings):
        alone = [lm.run(lm.text.ids([text]), read=["neurons.1"])[Site("neurons", 1)][0, -1] for text in _after(prompt, before)]
        expected.append(torch.stack(alone).double().mean(0))
    torch.testing.assert_close(keys_IN, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


def _after(prompt: str, before: list[str]) -> list[str]:
    return [prompt, *(f"{text} {prompt}" for text in before)]


def test_the_price_of_other_texts_spares_them(lm: LanguageModel, statistics: KeyStatistics) -> None:
    def harm(delta: WeightDelta) -> float:
        own = all_logits(lm, KEEP)
        with lm.edited(delta):
            new = all_logits(lm, KEEP)
        return float((own.exp() * (own - new)).sum(-1).mean())

    free, priced = (edit(lm, FACTS, statistics, [0, 1], "joint", options=replace(FAST, kl=kl), keep=KEEP) for kl in (0.0, 300.0))
    assert harm(priced) < 0.5 * harm(free)
    assert all(fact["fitted"] > fact["before"] for fact in priced.facts["facts"])


def test_the_same_facts_give_the_same_edit(lm: LanguageModel, statistics: KeyStatistics) -> None:
    options = replace(FAST, steps=4, kl=1.0, facts_a_step=1, texts_a_step=3)
    first, second = (edit(lm, FACTS, statistics, [1], "joint", options=options, keep=KEEP) for _ in range(2))
    (name,) = first.names
    assert torch.equal(first.change(name), second.change(name))


def test_texts_to_keep_are_asked_for(lm: LanguageModel, statistics: KeyStatistics) -> None:
    with pytest.raises(ConfigError, match="no texts that the edit is to treat as before"):
        edit(lm, FACTS, statistics, [1], "joint", keep=[[3]])
