from __future__ import annotations

from collections.abc import Iterable
from math import log

import pytest
import torch

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.arms import STEERED, arms_beside
from saekit.evaluate.steering.calibrate import TOLERANCE, Costs
from saekit.evaluate.steering.frontier import Fixed, Goal, Prompting, frontier, prompting_kl
from saekit.evaluate.steering.side_effects import kl
from saekit.lm import LanguageModel
from saekit.steer import Vector, ablate, add, clamp, for_prompts
from saekit.steer.scaling import scaled

TEXTS = ["Once upon a time, there was a big dog.", "Lily.", "The cat ran to the tree. It was very happy and"]
PROMPTS = ["One day, a girl", "The old man", "They saw a"]


class Curve(Costs):
    """Costs that follow a known curve, in place of a model's."""

    def __init__(self, cost: object) -> None:
        self.cost, self.tail, self.measured, self.intervention = cost, False, {}, None  # type: ignore[assignment]

    def _measure(self, factors: Iterable[float]) -> None:
        self.measured |= {factor: (self.cost(factor), 0.0) for factor in factors}  # type: ignore[operator]

    def _met(self, budget: float, factor: float) -> float:  # type: ignore[override]
        return factor


def test_the_strength_is_found_where_the_cost_falls_before_it_rises() -> None:
    # It falls from 8 at 0 to 0.1 near a factor of 300, and rises past 1 near 1,600.
    (found,) = Curve(lambda f: 0.1 + abs(log(f / 300)) ** 2 / 3).meet(1.0)
    assert 0.1 + log(found / 300) ** 2 / 3 == pytest.approx(1, rel=TOLERANCE) and found > 300
    # It is below 1 between two neighbours of the first round only.
    (found,) = Curve(lambda f: 0.1 + 60 * log(f / 2.8) ** 2).meet(1.0)
    assert found > 2.8 and 0.1 + 60 * log(found / 2.8) ** 2 == pytest.approx(1, rel=TOLERANCE)
    with pytest.raises(InterventionError, match="not less than 2"):
        Curve(lambda f: 2 + f).meet(1.0)
    with pytest.raises(InterventionError, match="at most"):
        Curve(lambda f: f / (2 * f + 1)).meet(1.0)
    with pytest.raises(InterventionError, match="jumps past 1 "):
        Curve(lambda f: 0.0 if f < 3 else 4.0).meet(1.0)


def test_several_budgets_share_their_measurements() -> None:
    curve = Curve(lambda f: f**2)
    for budget, factor in zip((0.5, 1.0, 4.0), curve.meet(0.5, 1.0, 4.0), strict=True):
        assert factor**2 == pytest.approx(budget, rel=TOLERANCE)
    assert len(curve.measured) <= 8 + 3 * 2  # a power is a line in logarithms


def test_every_arm_is_measured_at_equal_cost(stories_lm: LanguageModel) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    arms = {
        "push": add(Vector(stories_lm.site("resid_post.2"), vector), 0.1),
        "words": Prompting("A big dog ran. "),
        "ablation": ablate("neuron:3/17"),
    }
    goal = Goal(lambda text: float("e" in text[:9]), PROMPTS, stories_lm.text.ids(TEXTS), 8)
    found = frontier(stories_lm, arms, goal, (0.1, 0.4))
    assert [each.budget for each in found.of("push")] == [0.1, 0.4]
    for each in found.of("push"):
        made = add(Vector(stories_lm.site("resid_post.2"), vector), 0.1 * (each.factor or 0))
        assert kl(stories_lm, made, TEXTS) == pytest.approx(each.budget, rel=TOLERANCE + 1e-3)
        alone = [
            stories_lm.generate(prompt, interventions=[made], max_new_tokens=8, do_sample=False).texts[0] for prompt in PROMPTS
        ]
        assert list(each.scores) == [float("e" in text[:9]) for text in alone] and each.sample == alone[0]
    (words,) = found.of("words")
    made = stories_lm.generate(["A big dog ran. " + prompt for prompt in PROMPTS], max_new_tokens=8, do_sample=False)
    assert words.factor is words.budget is None and words.sample == made.texts[0]
    assert "no strength" in found.failures["ablation"] and not found.of("ablation")
    rows = found.to_dict()
    assert all(low <= row["success"] <= high for row in rows["points"] for low, high in [row["interval"]])


def test_the_cost_of_a_prompt_is_that_of_each_text_alone(stories_lm: LanguageModel) -> None:
    (opening,) = stories_lm.text.ids(["A big dog ran. "])
    kls = []
    for row in stories_lm.text.ids(TEXTS):
        base, prompted = (
            stories_lm.run([ids]).logits[0].double().log_softmax(-1)  # type: ignore[index]
            for ids in (row, [*opening, *row[1:]])  # one BOS
        )
        kls += (base[1:].exp() * (base[1:] - prompted[len(opening) :])).sum(-1).tolist()
    found = prompting_kl(stories_lm, Prompting("A big dog ran. "), stories_lm.text.ids(TEXTS), batch_size=2)
    assert found == pytest.approx(sum(kls) / len(kls), rel=1e-4)


def test_a_quantile_is_scaled_as_its_amount(stories_lm: LanguageModel) -> None:
    texts = [stories_lm.text.ids(["Once upon a time there was a dog."])[0]]
    made = clamp("neuron:2/3", "q.9").resolve(stories_lm, texts=texts)
    amount = made.changes[0].amounts
    assert amount is not None
    change = scaled(made, (1.0, 2.0)).changes[0]
    assert change.strength.unit == "raw" and change.strength.values == pytest.approx([float(amount), 2 * float(amount)])
    assert scaled(made, 2.0).changes[0].strength.values == pytest.approx([2 * float(amount)])


def test_strengths_do_not_vary_with_the_number_of_a_prompt(stories_lm: LanguageModel) -> None:
    """Prompt k of the batch stands for the k-th strength there, so that neither a condition nor places can mean prompt k."""
    texts = [stories_lm.text.ids([text])[0] for text in ("Once upon a time", "The dog ran")]
    push = add("residual:resid_post.2/5", 5.0)
    for made in (for_prompts([push, None]), push.at([[1], [2]])):
        with pytest.raises(InterventionError, match="number of the prompt"):
            Costs(stories_lm, made.resolve(stories_lm), texts).meet(0.1)
        assert scaled(made.resolve(stories_lm), 2.0).changes[0].strength.values == (10.0,)


def test_a_goal_needs_a_prompt() -> None:
    with pytest.raises(ConfigError, match="no prompt"):
        Goal(lambda _: 0.0, (), [[1]])


def test_steering_is_compared_with_its_controls_on_the_same_prompts(stories_lm: LanguageModel) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    steering = add(Vector(stories_lm.site("resid_post.2"), vector), 0.1)
    arms = arms_beside(stories_lm, steering, prompting="A big dog ran. ")
    assert set(arms) == {STEERED, "random_direction", "prompting"}
    goal = Goal(lambda text: float("e" in text[:9]), PROMPTS, stories_lm.text.ids(TEXTS), 8)
    found = frontier(stories_lm, arms, goal, (0.1, 0.4))
    rows = found.differences(STEERED)
    assert [(row["other"], row["budget"]) for row in rows if row["other"] != "prompting"] == [
        ("random_direction", 0.1),
        ("random_direction", 0.4),
    ]
    (words,) = (row for row in rows if row["other"] == "prompting")
    own = found.of("prompting")[0].kl
    assert abs(words["kl"] - own) == min(abs(each.kl - own) for each in found.of(STEERED))
    for row in rows:
        mine, other = (
            next(each for each in found.of(arm) if each.kl == row[cost])
            for arm, cost in ((STEERED, "kl"), (row["other"], "other_kl"))
        )
        assert row["difference"] == pytest.approx(mine.value - other.value)
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]


def test_what_has_no_strength_is_measured_as_it_is(stories_lm: LanguageModel) -> None:
    made = ablate("neuron:3/17")
    arms = arms_beside(stories_lm, made)
    assert arms[STEERED] == Fixed(made)
    goal = Goal(lambda text: float("e" in text[:9]), PROMPTS, stories_lm.text.ids(TEXTS), 8)
    found = frontier(stories_lm, {STEERED: Fixed(made)}, goal, (0.1,))
    (point,) = found.points
    assert point.kl == pytest.approx(kl(stories_lm, made, TEXTS)) and point.budget is None and not found.failures
