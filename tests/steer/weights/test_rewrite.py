"""ROME, MEMIT and AlphaEdit against dense float64 formulas, and what they do to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saekit.activations.corpus.base import Corpus
from saekit.errors import ConfigError, InterventionError, StoreMismatch
from saekit.evaluate.steering.edits import evaluate_edit
from saekit.lm import LanguageModel, Site
from saekit.steer.weights import EditOptions, Fact, KeyStatistics, WeightDelta, edit
from saekit.steer.weights.keys import RIDGE, down_projection
from saekit.steer.weights.prompts import continued, spaced, span_of
from saekit.steer.weights.rewrite import alphaedit, memit, parse_options, rome
from saekit.steer.weights.values import Contexts, find_value, texts_before
from tests.kit.tiny import make_lm
from tests.lm.conftest import attach
from tests.steer.weights.conftest import FACTS

FAST = EditOptions(contexts=2, steps=20, rate=0.3, decay=0.0, kl=0.0, largest=50.0)


def keys_and_changes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (24, 16))  # type: ignore[return-value]


def ridged(C: Tensor) -> Tensor:
    return C + RIDGE * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)


def test_rome_is_the_constrained_least_squares_solution(statistics: KeyStatistics) -> None:
    K, R = keys_and_changes()
    k, r, C = K[:, :1], R[:, :1], ridged(statistics.moment(0))
    D = r @ rome(statistics, 0, k, EditOptions())
    torch.testing.assert_close(D @ k, r)
    # Of all changes that bring r at k, it disturbs the corpus least: the gradient of tr(D C D^T) is along k.
    torch.testing.assert_close(D @ C, (D @ C @ k) @ k.T / (k.T @ k), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(D, r @ (torch.linalg.inv(C) @ k).T / (k.T @ torch.linalg.inv(C) @ k))


def test_memit_is_the_ridge_regression(statistics: KeyStatistics) -> None:
    K, R = keys_and_changes()
    C = ridged(statistics.moment(0))
    expected = R @ K.T @ torch.linalg.inv(0.7 * 24 * C + K @ K.T)
    torch.testing.assert_close(R @ memit(statistics, 0, K, EditOptions(preserve=0.7)), expected)


def test_alphaedit_changes_nothing_in_the_directions_of_the_corpus(statistics: KeyStatistics) -> None:
    K, R = keys_and_changes()
    options = EditOptions(null=0.05, preserve=0.3)
    D = R @ alphaedit(statistics, 0, K, options)
    values, vectors = torch.linalg.eigh(statistics.moment(0))
    kept = values.cumsum(0) > 0.05 * values.sum()
    assert bool(kept.any()) and float((D @ vectors[:, kept]).abs().max()) < 1e-9 * float(D.abs().max())
    P = vectors[:, ~kept] @ vectors[:, ~kept].T
    weight = 0.3 * statistics.moment(0).diagonal().mean()
    torch.testing.assert_close(D, R @ K.T @ P @ torch.linalg.inv(K @ K.T @ P + weight * torch.eye(24, dtype=torch.float64)))


def test_keys_and_values_are_means_over_the_same_contexts(lm: LanguageModel, statistics: KeyStatistics) -> None:
    """R-ROME: the rank-1 edit changes the output at the mean key by what was fitted; the original's mixture of keys does not."""
    fact, layer = FACTS[0], 1
    delta = edit(lm, [fact], statistics, [layer], "rome", options=FAST)
    contexts = Contexts.of(lm, fact, texts_before(lm, FAST.contexts))
    key_I = contexts.read(lm, Site("neurons", layer)).double().mean(0)
    wanted_O = find_value(lm, contexts, layer, FAST).change
    (name,) = delta.names
    torch.testing.assert_close(delta.change(name).double() @ key_I, wanted_O, rtol=1e-4, atol=1e-5)
    assert len(contexts.rows) == 3 and delta.rank(name) == 1
    assert not torch.allclose(
        delta.change(name).double() @ contexts.read(lm, Site("neurons", layer))[0].double(), wanted_O, rtol=1e-2
    )


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("tiny", "rome"),
        ("tiny", "memit"),
        ("tiny", "alphaedit"),
        ("gpt2", "rome"),
        ("gpt2", "memit"),
        ("opt", "rome"),
        ("gemma2", "rome"),
    ],
)
def test_facts_are_written_into_every_kind_of_mlp(family: str, method: str, corpus: Corpus) -> None:
    lm = make_lm() if family == "tiny" else LanguageModel.attach(attach(family).model, make_lm().tokenizer, bos="no")
    statistics = KeyStatistics.collect(lm, corpus, [1], n_tokens=600, progress=False)
    # The outputs of random MLPs are small beside the residual stream.
    options = replace(FAST, contexts=0, preserve=1e-6, null=0.9, rate=5.0, largest=1e5)
    facts = [replace(FACTS[0], target="w9", paraphrases=(), neighbourhood=())]
    before = {name: each.clone() for name, each in lm.model.named_parameters()}
    delta = edit(lm, facts, statistics, [1], method, options=options)
    assert all(torch.equal(each, before[name]) for name, each in lm.model.named_parameters())
    assert delta.names == tuple(name for name, each in lm.model.named_parameters() if each is down_projection(lm, 1).weight)
    (fact,) = delta.facts["facts"]
    with lm.edited(delta):
        ids, (w9,) = lm.text.ids([FACTS[0].prompt]), continued(lm, FACTS[0].prompt, "w9")
        logits = lm.run(ids, logits="last").logits
    assert logits is not None
    assert float(logits[0].softmax(-1)[w9]) == pytest.approx(fact["fitted"], rel=0.01)
    if family == "gemma2":  # the norm behind the MLP bounds what the MLP can do
        assert fact["fitted"] > 3 * fact["before"]
    else:
        assert evaluate_edit(lm, facts, delta, new_tokens=3).measures["efficacy"] == {"before": 0.0, "after": 1.0, "n": 1}


def test_layers_share_the_change(lm: LanguageModel, statistics: KeyStatistics) -> None:
    options = replace(FAST, preserve=1e-6)
    delta = edit(lm, FACTS, statistics, [0, 1], "memit", options=options)
    assert len(delta.names) == 2
    before = texts_before(lm, options.contexts)
    all_contexts = [Contexts.of(lm, fact, before) for fact in FACTS]
    plain = [each.read(lm, Site("resid_post", 1)).mean(0) for each in all_contexts]
    wanted = [find_value(lm, each, 1, options).change.float() for each in all_contexts]
    with lm.edited(delta):
        moved = [each.read(lm, Site("resid_post", 1)).mean(0) - first for each, first in zip(all_contexts, plain)]
    torch.testing.assert_close(moved, wanted, rtol=0.02, atol=0.05)


def test_edits_are_made_on_top_of_those_that_are_on(lm: LanguageModel, statistics: KeyStatistics) -> None:
    first = edit(lm, FACTS[:1], statistics, [1], options=FAST)
    with lm.edited(first):
        second = edit(lm, FACTS[1:], statistics, [1], options=FAST)
    with pytest.raises(StoreMismatch):
        second.check(lm)
    with lm.edited(first), lm.edited(second):
        pass
    together = edit(lm, FACTS, statistics, [1], options=FAST)
    for name in together.names:
        torch.testing.assert_close(together.change(name), first.change(name) + second.change(name), rtol=1e-3, atol=1e-4)


def test_measures_before_are_of_the_unedited_model(lm: LanguageModel) -> None:
    report = evaluate_edit(lm, FACTS, WeightDelta(), new_tokens=8)
    found = report.to_dict()
    assert found["neighbourhood"] == {"before": 1.0, "after": 1.0, "n": 2}  # what it says itself
    assert found["efficacy"]["before"] == found["efficacy"]["after"]
    assert found["portability"]["n"] == 1 and len(found["facts"]) == 2
    noise = {name: torch.ones_like(each) for name, each in lm.model.named_parameters() if name.endswith("down_proj.weight")}
    damaged = evaluate_edit(lm, FACTS, WeightDelta(noise), new_tokens=8).to_dict()
    names = [name for name in found if name != "facts"]
    assert [damaged[name]["before"] for name in names] == [found[name]["before"] for name in names]
    assert damaged["neighbourhood"]["after"] < 1


def test_where_a_subject_stands(lm: LanguageModel) -> None:
    assert span_of(lm, "w1 w2 w3 w2 w4", "w2") == (4, 5)  # the last one, after BOS
    assert span_of(lm, "w10 w11 w12", "w10 w11") == (1, 3)
    assert continued(lm, "w1 w2", "w3") == lm.text.ids(["w3"], bos=False)[0]
    assert [spaced("is", "Rome"), spaced("is ", "Rome"), spaced('"', "Rome"), spaced("is", " x"), spaced("は", "東京")] == [
        " Rome", "Rome", "Rome", " x", "東京"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="does not hold"):
        span_of(lm, "w1", "w2")


def test_what_cannot_be_edited_is_refused(lm: LanguageModel, statistics: KeyStatistics, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one layer, and 2"):
        edit(lm, FACTS, statistics, [0, 1], "rome")
    with pytest.raises(ConfigError, match="nothing to edit"):
        edit(lm, [], statistics, [0])
    with pytest.raises(ConfigError, match="memit"):
        edit(lm, FACTS, statistics, [0], "memmit")
    with pytest.raises(StoreMismatch, match="statistics"):
        edit(make_lm(seed=1), FACTS, statistics, [0])
    with pytest.raises(ConfigError, match="does not hold"):
        edit(lm, [Fact("w1 w2", "w3", "w4")], statistics, [0])
    with pytest.raises(ConfigError, match="steps"):
        parse_options({"step": 3})
    with pytest.raises(ConfigError, match="whole number"):
        parse_options({"steps": 3.5})
    with pytest.raises(ConfigError, match="rate"):
        EditOptions(rate=float("nan"))


def test_spreading_needs_mlps_that_add_their_output(corpus: Corpus) -> None:
    lm = LanguageModel.attach(attach("gemma2").model, make_lm().tokenizer, bos="no")
    statistics = KeyStatistics.collect(lm, corpus, [0, 1], n_tokens=300, progress=False)
    with pytest.raises(InterventionError, match="spread over layers"):
        edit(lm, FACTS[:1], statistics, [0, 1], "memit", options=replace(FAST, contexts=0))
