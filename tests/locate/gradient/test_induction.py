"""The induction model: the previous-token head, whose effect lies behind a softmax that is sure of its choice.

Each prompt repeats a list up to a word; the corrupted list has this word and another one exchanged, so that another word follows.
The previous-token head tells each word its predecessor, and the induction head looks for the predecessor that equals the word.
"""

from __future__ import annotations

from random import Random

import pytest

from saekit.lab.induction_model import induction_path, prompts
from saekit.lm import Edit, LanguageModel
from saekit.locate.gradient import (
    atp_star,
    attribution_patching,
    conductance,
    gradient_x_activation,
    integrated_gradients,
)
from saekit.objects import Space, spaces_of
from saekit.tasks import Metric, Ranking, Task

PREVIOUS, INDUCTION = "head:0.2", "head:1.0"  # as the model's truth.json says


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load(induction_path())


@pytest.fixture(scope="module")
def task() -> Task:
    random = Random(0)
    clean, corrupted, answers, foils = [], [], [], []
    for row in prompts(16, 16, 1).rows:
        words = row[1:17]
        first = random.randrange(2, 8)
        second = first + random.randrange(3, 6)
        other = list(words)
        other[first], other[second] = other[second], other[first]
        clean.append((row[0], *words, *words[: first + 1]))
        corrupted.append((row[0], *other, *words[: first + 1]))
        answers.append((words[first + 1],))
        foils.append((words[second + 1],))
    return Task("induction", tuple(clean), tuple(corrupted), tuple(answers), tuple(foils))


@pytest.fixture(scope="module")
def heads(lm: LanguageModel) -> list[Space]:
    return spaces_of(lm, "heads")


@pytest.fixture(scope="module")
def exact(lm: LanguageModel, task: Task) -> dict[str, float]:
    """The fall of the metric when each head of the clean run takes its corrupted value."""
    metric = Metric.of("logit_difference", task)
    real = task.mask_BT.bool()
    intact = lm.run(task.clean_BT, attention_mask=task.mask_BT).logits
    effects = {}
    for space in spaces_of(lm, "heads"):
        source = lm.run(task.corrupted_BT, attention_mask=task.mask_BT, read=[space.site])[space.site][real]
        for unit in range(space.n_units):
            edit = Edit(
                space.site, lambda x, at, unit=unit, space=space, source=source: space.write(x, [unit], source[:, [unit]])
            )  # type: ignore[misc]
            run = lm.run(task.clean_BT, attention_mask=task.mask_BT, edits=[edit]).logits
            effects[str(space.ref(unit))] = float(metric(intact) - metric(run))  # type: ignore[arg-type]
    return effects


def found(ranking: Ranking) -> set[str]:
    return {str(ref) for ref in ranking.top(2, by="highest").refs}


def test_two_heads_carry_the_behaviour(exact: dict[str, float]) -> None:
    assert min(exact[PREVIOUS], exact[INDUCTION]) > 15
    assert all(abs(effect) < 0.1 for head, effect in exact.items() if head not in (PREVIOUS, INDUCTION))


def test_plain_gradients_miss_the_previous_token_head(
    lm: LanguageModel, task: Task, heads: list[Space], exact: dict[str, float]
) -> None:
    """The documented failure: the induction head's softmax is flat, so that the head before it seems to do nothing, or harm."""
    for ranking in (
        gradient_x_activation(lm, task, spaces=heads, progress=False),
        attribution_patching(lm, task, spaces=heads, progress=False),
        attribution_patching(lm, task, spaces=heads, direction="denoise", progress=False),
    ):
        assert ranking[INDUCTION] > 1
        assert ranking[PREVIOUS] < 0.1 * min(exact[PREVIOUS], ranking[INDUCTION])


def test_integrated_gradients_find_it(lm: LanguageModel, task: Task, heads: list[Space], exact: dict[str, float]) -> None:
    for ranking in (
        integrated_gradients(lm, task, spaces=heads, along="activations", progress=False),
        integrated_gradients(lm, task, spaces=heads, along="activations", direction="denoise", progress=False),
        integrated_gradients(lm, task, spaces=heads, progress=False),
        conductance(lm, task, spaces=heads, progress=False),
    ):
        assert found(ranking) == {PREVIOUS, INDUCTION}
        assert ranking[PREVIOUS] > 0.5 * exact[PREVIOUS]


def test_atp_star_finds_it(lm: LanguageModel, task: Task, heads: list[Space]) -> None:
    for direction in ("noise", "denoise"):
        ranking = atp_star(lm, task, spaces=heads, direction=direction, progress=False)  # type: ignore[arg-type]
        assert found(ranking) == {PREVIOUS, INDUCTION}
        assert ranking[PREVIOUS] > 1
        # The QK fix of the paper corrects queries and keys alone.
        keys = atp_star(lm, task, spaces=spaces_of(lm, "k"), direction=direction, upstream=False, progress=False)  # type: ignore[arg-type]
        plain = attribution_patching(lm, task, spaces=spaces_of(lm, "k"), direction=direction, progress=False)  # type: ignore[arg-type]
        assert keys["k:1.0"] > max(1, 10 * plain["k:1.0"])
        assert str(keys.top(1).refs[0]) == "k:1.0"
        published = atp_star(lm, task, spaces=heads, direction=direction, upstream=False, progress=False)  # type: ignore[arg-type]
        assert published[PREVIOUS] < 0.1 * ranking[PREVIOUS]
