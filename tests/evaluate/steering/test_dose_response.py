"""A sweep against one generation at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.dose_response import AFFORDABLE, Arm, Natural, Point, Sampling, Sweep, sweep
from saekit.evaluate.steering.mentions import Mentions, Rate
from saekit.evaluate.steering.side_effects import perplexity
from saekit.lm import LanguageModel
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.steer import RandomControl, Strength, add
from saekit.steer.intervention import Intervention

PROMPTS = ["Once upon a time", "One day, a girl"]
SITE = Site("resid_post", 2)
FEATURE = Ref.feature(SITE, 7)
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 12, "n_samples": 2, "seed": 5}
SETTINGS = Sampling(n_samples=2, max_new_tokens=12, seed=5)


def change(lm: LanguageModel):  # type: ignore[no-untyped-def]
    return lambda strength: add(FEATURE, strength).resolve(lm, norms={SITE: 8.0})


def one(lm: LanguageModel, strength: float) -> Intervention:
    return change(lm)(Strength(strength, "norm"))


def test_every_strength_is_as_if_alone(lm: LanguageModel) -> None:
    mentions = Mentions(["she", "the"])
    found = sweep(lm, PROMPTS, change(lm), [0.2, 0.7], mentions, sampling=replace(SETTINGS, controls=2))
    assert found.prompts == PROMPTS
    plain = lm.generate(PROMPTS, **SAMPLING)
    assert found.baseline.texts == plain.texts
    assert found.baseline.rate == mentions.rate(plain.texts)
    assert found.baseline.perplexity == pytest.approx(perplexity(lm, plain.prompt_tokens, continuations=plain.tokens).overall)
    for point, strength in zip(found.points, [0.2, 0.7], strict=True):
        assert point.strength == Strength(strength, "norm")
        alone = lm.generate(PROMPTS, interventions=[one(lm, strength)], **SAMPLING)
        assert point.steered.texts == alone.texts
        assert point.steered.perplexity == pytest.approx(
            perplexity(lm, alone.prompt_tokens, continuations=alone.tokens).overall, rel=1e-4
        )
        randoms = [lm.generate(PROMPTS, interventions=[RandomControl(one(lm, strength), 5 + i)], **SAMPLING) for i in range(2)]
        assert point.random.texts == [text for each in randoms for text in each.texts]
        assert point.random.rate == mentions.rate(point.random.texts)
    assert found.points[0].steered.texts != found.points[1].steered.texts != found.baseline.texts


def test_strength_zero_gives_the_baseline(lm: LanguageModel) -> None:
    found = sweep(lm, PROMPTS, change(lm), [0.0], Mentions(["the"]), sampling=SETTINGS)
    (point,) = found.points
    assert point.steered.texts == point.random.texts == found.baseline.texts
    assert found.cost(point.steered) == pytest.approx(1)
    assert found.lift(point.steered) == pytest.approx(1) or not found.baseline.rate.hits


def test_costs_are_relative_to_natural_text(lm: LanguageModel) -> None:
    natural, mentions = ["The girl saw the dog.", "She had the ball."], Mentions(["the"])
    found = sweep(lm, PROMPTS, change(lm), [0.7], mentions, sampling=SETTINGS, natural=natural)
    (point,) = found.points
    assert found.natural is not None and found.natural.rate == mentions.rate(natural)
    assert found.natural.perplexity == pytest.approx(perplexity(lm, natural).overall)
    assert point.steered.alone == pytest.approx(perplexity(lm, point.steered.texts).overall)
    assert found.baseline.alone is not None and point.steered.alone is not None
    reference = max(found.natural.perplexity, found.baseline.alone)
    assert found.cost(point.steered) == pytest.approx(point.steered.alone / reference)
    without = sweep(lm, PROMPTS, change(lm), [0.7], mentions, sampling=SETTINGS)
    assert without.points[0].steered.alone is None and without.relative_to == "unsteered text"


@pytest.mark.parametrize(
    ("rate", "random", "alone", "said"),
    [(50, 0, 9.0, "It worked:"), (50, 0, 20.0, "It worked at a high price:"), (50, 30, 9.0, "It did not work:"),
     (4, 0, 9.0, "It did not work:")],
)  # fmt: skip
def test_the_verdict_counts_controls_and_cost(rate: int, random: int, alone: float, said: str) -> None:
    arms = [Arm([], Rate(hits, 100), 50.0, cost) for hits, cost in ((0, 5.0), (rate, alone), (random, 5.0))]
    point = Point(Strength(1.0, "norm"), *arms[1:])
    found = Sweep([], 1, arms[0], [point], Natural(6.0, Rate(60, 100)))
    assert found.cost(arms[1]) == alone / 6 and AFFORDABLE < 20 / 6
    verdict = found.verdict(point)
    assert verdict.startswith(said) and f"{rate}% of the words" in verdict and "60% in natural text" in verdict


def test_a_concept_that_texts_name_rarely_is_counted_by_texts(lm: LanguageModel) -> None:
    mentions = Mentions(["the", "she"])
    found = sweep(lm, PROMPTS, change(lm), [0.3], mentions, sampling=SETTINGS, natural=["Tom saw the dog run away from home."])
    arm = found.points[0].steered
    assert not found.by_words and arm.named == tuple(bool(mentions.spans(text)) for text in arm.texts)
    assert found.share(arm) == arm.of_texts == sum(arm.named) / len(arm.texts)
    halves = [sum(arm.named[i : i + 2]) / 2 for i in (0, 2)]
    assert found.share_of_prompts(arm, mentions) == halves
    assert f"{arm.of_texts:.0%} of the texts name the concept" in found.verdict(found.points[0])
    often = replace(found, natural=Natural(6.0, Rate(60, 100)))
    assert often.by_words and often.share(arm) == arm.rate.value
    assert often.share_of_prompts(arm, mentions) == [mentions.rate(arm.texts[i : i + 2]).value for i in (0, 2)]


def _arm(hits: int, words: int, cost: float) -> Arm:
    return Arm([], Rate(hits, words), cost)


def _sweep(baseline: Arm, *steered: Arm) -> Sweep:
    return Sweep([], 1, baseline, [Point(Strength(i), arm, arm) for i, arm in enumerate(steered)])


def test_the_best_is_the_highest_rate_that_is_affordable() -> None:
    found = _sweep(_arm(1, 100, 2.0), _arm(3, 100, 2.2), _arm(20, 100, 2.5), _arm(90, 100, 9.0))
    assert found.best(1.3) is found.points[1]
    assert found.best(1.2) is found.points[0]
    assert found.best(10) is found.points[2]
    assert found.best(1.0) is found.points[0]  # none is affordable: the cheapest


def test_a_prompt_is_shown_by_its_sample_with_most_mentions() -> None:
    arm = Arm(["cat", "no", "a cat, a cat", "no", "cat", "first", "none", "second"], Rate(4, 11), 1.0)
    found = Sweep(PROMPTS, 2, arm, [])
    assert [found.sample(arm, i, Mentions(["cat"])) for i in range(4)] == ["cat", "a cat, a cat", "cat", "none"]


def test_the_lift_over_a_baseline_without_mentions_is_a_lower_bound() -> None:
    seen, unseen = _sweep(_arm(2, 100, 1), _arm(10, 100, 1)), _sweep(_arm(0, 100, 1), _arm(10, 200, 1))
    assert seen.lift(seen.points[0].steered) == pytest.approx(5)
    assert seen.lift_text(seen.points[0].steered) == "5×"
    assert unseen.lift(unseen.points[0].steered) == pytest.approx(5)
    assert unseen.lift_text(unseen.points[0].steered) == ""


@pytest.mark.parametrize(("prompts", "strengths"), [([], [1.0]), (PROMPTS, [])])
def test_a_sweep_without_prompts_or_strengths_is_refused(lm: LanguageModel, prompts: list[str], strengths: list[float]) -> None:
    with pytest.raises(ConfigError):
        sweep(lm, prompts, change(lm), strengths, Mentions(["the"]))


def test_settings_that_mean_nothing_are_refused(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError):
        Sampling(controls=0)
    for settings in (
        {"sampling": Sampling(n_samples=0)},
        {"sampling": Sampling(max_new_tokens=0)},
        {"strengths": [float("nan")]},
        {"unit": "std"},
    ):
        arguments: dict[str, Any] = {"strengths": [1.0], **settings}
        with pytest.raises((ConfigError, InterventionError)):
            sweep(lm, PROMPTS, change(lm), mentions=Mentions(["the"]), **arguments)


def test_one_prompt_may_be_given_as_text(lm: LanguageModel) -> None:
    found = sweep(lm, PROMPTS[0], change(lm), [0.1], Mentions(["the"]), sampling=SETTINGS)
    assert found.prompts == PROMPTS[:1]
