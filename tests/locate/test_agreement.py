"""Consensus: planted votes give known weights, and what is ablated has its exact effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.locate.agreement import CHEAP, Votes, consensus, spearman
from saekit.locate.causal import set_effects
from saekit.locate.data import DataChoice, data_of
from saekit.locate.methods import rank
from saekit.locate.registry import METHODS, Method
from saekit.locate.scored import ranked
from saekit.names.ref import Ref
from saekit.objects.registry import spaces_of
from saekit.tasks import Ranking, Task

HEADS = [Ref.head(layer, unit) for layer in range(5) for unit in range(8)]


@pytest.fixture(scope="module")
def task(stories_lm: LanguageModel) -> Task:
    found = data_of(stories_lm, "gen:pronouns", DataChoice(4))
    assert isinstance(found, Task)
    return found


@pytest.fixture(scope="module")
def exact(stories_lm: LanguageModel, task: Task) -> Tensor:
    """(40, 4) the effect of every head on every prompt."""
    return torch.stack([each.per_example for each in set_effects(stories_lm, task, [[ref] for ref in HEADS], progress=False)])


@pytest.fixture(autouse=True)
def planted(exact: Tensor) -> Iterator[None]:
    """Methods that say twice the truth, noise, and the truth of one half only."""
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = torch.where(torch.arange(len(exact))[:, None] % 2 == 0, exact, 0.0)

    def method(scores_NB: Tensor) -> Any:
        def rank(
            lm: LanguageModel, data: Task, *, spaces: Any = None, metric: Any = None, positions: Any = None, progress: bool
        ) -> Ranking:
            return ranked(HEADS, scores_NB, method="planted", lm=lm, data=data)

        return rank

    for name, scores in {"twice": 2 * exact, "noise": noise, "half": half}.items():
        METHODS.register(name, Method(method(scores), "task", name))
    yield
    for name in ("twice", "noise", "half"):
        METHODS.unregister(name)


def test_the_ablated_objects_have_their_exact_effects_and_the_others_the_fitted_ones(
    stories_lm: LanguageModel, task: Task, exact: Tensor
) -> None:
    spaces = spaces_of(stories_lm, "heads")
    found = consensus(stories_lm, task, spaces=spaces, methods=["twice", "noise"], confirm=5, sample=5, progress=False)
    truth = dict(zip(HEADS, exact.mean(1).tolist()))
    assert len(found) == 40 and 10 <= sum(each is not None for each in found.confirmed) <= 15
    for ref, confirmed in zip(found.refs, found.confirmed):
        if confirmed is not None:
            assert found[ref] == confirmed == pytest.approx(truth[ref], abs=1e-6)  # type: ignore[index]
    # The truth explains everything, so noise has no weight and every estimate is exact.
    methods = found.obtained["methods"]
    assert methods["twice"]["weight"] == pytest.approx(0.5, rel=1e-4) and methods["twice"]["spearman"] == pytest.approx(1)
    assert methods["noise"]["weight"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(torch.tensor(found.scores), torch.tensor([truth[r] for r in found]), rtol=0, atol=1e-5)  # type: ignore[index]
    assert found.per_example is not None
    torch.testing.assert_close(found.per_example, exact[[HEADS.index(r) for r in found]], rtol=0, atol=1e-5)  # type: ignore[arg-type]
    (pair,) = found.obtained["agreement"]
    votes = [torch.tensor(found.evidence[name]) for name in ("twice", "noise")]
    assert pair["methods"] == ["twice", "noise"] and pair["spearman"] == pytest.approx(spearman(*votes))
    firsts = [set(votes[i].abs().topk(5).indices.tolist()) for i in range(2)]
    assert pair["shared"] == len(firsts[0] & firsts[1]) / 5
    assert found.top(3).evidence["twice"] == tuple(found.evidence["twice"][found.refs.index(ref)] for ref in found.top(3))


def test_methods_that_know_different_halves_add_up(stories_lm: LanguageModel, task: Task, exact: Tensor) -> None:
    other = exact - torch.where(torch.arange(len(exact))[:, None] % 2 == 0, exact, 0.0)
    rankings = {
        name: Ranking(tuple(HEADS), tuple(scores.mean(1).tolist()), per_example=scores)
        for name, scores in {"half": exact - other, "other": 3 * other}.items()
    }
    votes = Votes.of(rankings)
    weights = votes.weights({ref: float(exact[HEADS.index(ref)].mean()) for ref in votes.refs[:20]})  # type: ignore[arg-type]
    assert weights == pytest.approx({"half": 1.0, "other": 1 / 3}, rel=1e-6)
    torch.testing.assert_close(votes.combined(weights), exact[[HEADS.index(ref) for ref in votes.refs]])


def test_the_sample_decides_the_proportions_and_all_ablated_objects_the_size() -> None:
    large, small = HEADS[:10], HEADS[10:40]
    truth = {ref: 10.0 + i for i, ref in enumerate(large)} | {ref: 0.01 * (i + 1) for i, ref in enumerate(small)}
    # One method knows the large effects alone. The other orders the small ones, and gives twice their size.
    coarse = {ref: truth[ref] if ref in large else 0.01 * (i % 2) for i, ref in enumerate(HEADS)}
    fine = {ref: 0.2 if ref in large else 2 * truth[ref] for ref in HEADS}
    votes = Votes.of(
        {name: Ranking(tuple(each), tuple(each.values())) for name, each in {"coarse": coarse, "fine": fine}.items()}
    )
    sample = small[::3]
    exact = {ref: truth[ref] for ref in (*large, *sample)}
    assert votes.weights(exact)["coarse"] > 0.5  # type: ignore[arg-type]
    weights = votes.weights(exact, sample)  # type: ignore[arg-type]
    assert weights["coarse"] == pytest.approx(0, abs=1e-9) and 0.4 < weights["fine"] <= 1
    assert votes.weights(exact, sample[:4]) == votes.weights(exact)  # type: ignore[arg-type]


@pytest.mark.parametrize("replacement", ["zero", "counterfactual"])
def test_methods_approximate_the_replacement(stories_lm: LanguageModel, task: Task, replacement: str) -> None:
    settings: Any = {"spaces": spaces_of(stories_lm, "heads"), "progress": False}
    found = consensus(stories_lm, task, replacement=replacement, confirm=3, sample=6, **settings)
    assert set(found.evidence) == set(CHEAP[replacement])
    for name, options in CHEAP[replacement].items():
        alone = rank(stories_lm, task, name, options=options, **settings)
        assert found.evidence[name] == pytest.approx([alone[ref] for ref in found])
    exact = rank(stories_lm, task, "ablation", options={"replacement": replacement}, **settings)
    assert [each for each in found.confirmed if each is not None] == pytest.approx(
        [exact[ref] for ref, each in zip(found, found.confirmed) if each is not None], abs=1e-6
    )
    # Named methods run with the same options.
    (name, options), *_ = CHEAP[replacement].items()
    one = consensus(stories_lm, task, replacement=replacement, methods=name, confirm=3, sample=6, **settings)
    assert [one.evidence[name][one.refs.index(ref)] for ref in found] == pytest.approx(list(found.evidence[name]))


def test_objects_that_one_method_leaves_out_count_as_zero() -> None:
    votes = Votes.of({"one": Ranking(tuple(HEADS[:2]), (1.0, float("nan"))), "two": Ranking(tuple(HEADS[1:3]), (2.0, -3.0))})
    assert votes.refs == tuple(HEADS[:3])
    assert votes.scores["one"].tolist() == [1, 0, 0] and votes.scores["two"].tolist() == [0, 2, -3]
    assert votes.first(1) == {HEADS[0]: None, HEADS[2]: None}
    assert votes.weights({HEADS[0]: -1.0, HEADS[2]: 1.0}) == pytest.approx({"one": 0.5, "two": 1 / 6})  # nothing helps: equal
    with pytest.raises(ConfigError, match="No method ranks"):
        Votes.of({"one": Ranking((), ())})
    with pytest.raises(ConfigError, match="two ranks edges"):
        Votes.of({"two": Ranking(("head:0.1->q:1.2",), (1.0,))})  # type: ignore[arg-type]


def test_wrong_methods_are_refused(stories_lm: LanguageModel, task: Task) -> None:
    spaces = spaces_of(stories_lm, "heads")
    with pytest.raises(ConfigError, match=r"'zeros'.*Did you mean 'zero'"):
        consensus(stories_lm, task, spaces=spaces, replacement="zeros", progress=False)
    METHODS.register("texts", Method(lambda lm, data: None, "labelled", "no task"))
    try:
        for methods, said in (
            (["twic"], "Did you mean 'twice'"),
            ([], "at least one"),
            (["half", "half"], "each once"),
            ("texts", "labelled"),
        ):
            with pytest.raises(ConfigError, match=said):
                consensus(stories_lm, task, spaces=spaces, methods=methods, progress=False)
    finally:
        METHODS.unregister("texts")
