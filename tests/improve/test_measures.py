"""Targets and side effects against recomputation by hand."""

from __future__ import annotations

import pytest
import torch

from saekit import lab
from saekit.evaluate.capabilities import lost_tasks
from saekit.evaluate.changed import Change, Changed
from saekit.evaluate.lab import preference as lab_preference
from saekit.improve.effects import on_neutral_text
from saekit.improve.target import HIGHER, LOWER, Target, cross_entropy, judged, preference
from saekit.improve.trial import verdict_of
from saekit.lm import LanguageModel
from saekit.steer import intervene

TEXTS = ["The ship sailed to the harbor.", "Yes.", "A cat and a dog ran in the garden."]


def test_preference_is_that_of_the_laboratory(lab_lm: LanguageModel) -> None:
    task = lab.task("sycophancy", 20)
    assert torch.allclose(preference(task, "x").score(Changed(lab_lm)), lab_preference(lab_lm, task), atol=1e-6)


def test_a_prompt_stands_between_bos_and_the_rest(lab_lm: LanguageModel) -> None:
    task = lab.task("sycophancy", 4)
    found = preference(task, "x").score(Changed(lab_lm, (), "Be honest. "))
    for b, text in enumerate(task.texts):
        (ids,) = lab_lm.text.ids(["Be honest. " + text.clean])
        logits = lab_lm.run(torch.tensor([ids])).logits[0, -1].double()
        pair = torch.stack([task.answer_B[b], task.foil_B[b]])
        assert found[b] == pytest.approx(float(logits[pair].softmax(0)[0]), abs=1e-6)


def test_cross_entropy_is_that_of_each_text_alone(lab_lm: LanguageModel) -> None:
    change = Change((intervene("ablate", "head:3.5"),))
    with change.on(lab_lm) as changed:
        found = cross_entropy(TEXTS, "x").score(changed)
    for text, value in zip(TEXTS, found.tolist()):
        (ids,) = lab_lm.text.ids([text])
        row = torch.tensor([ids])
        logits = lab_lm.run(row, edits=[intervene("ablate", "head:3.5")], positions="all").logits[0, :-1].double()
        assert value == pytest.approx(float(torch.nn.functional.cross_entropy(logits, row[0, 1:])), rel=1e-5)


def test_a_judge_sees_the_continuation_under_the_change(lab_lm: LanguageModel) -> None:
    prompts = ["The ship sailed to", "One day a child"]
    said: list[str] = []
    change = Change((intervene("scale", "head:0.0", 0.0),), prompt="Instruction: ")
    with change.on(lab_lm) as changed:
        judged(prompts, lambda text: bool(said.append(text)), "x", max_new_tokens=4).score(changed)
    expected = lab_lm.generate(
        ["Instruction: " + each for each in prompts], interventions=[intervene("scale", "head:0.0", 0.0)], max_new_tokens=4
    )
    assert said == expected.texts


def test_neutral_text_is_compared_token_by_token(lab_lm: LanguageModel) -> None:
    change = Change((intervene("ablate", "head:3.5"),))
    rows = lab_lm.text.ids(TEXTS)
    found = on_neutral_text(lab_lm, change, rows)
    kls, deltas = [], []
    for row in rows:
        ids = torch.tensor([row])
        counted = lab_lm.ordinary(ids, torch.ones_like(ids))[0, :-1]
        base, new = (
            lab_lm.run(ids, edits=edits, positions="all").logits[0, :-1].double().log_softmax(-1)
            for edits in ([], [intervene("ablate", "head:3.5")])
        )
        kls.append((base.exp() * (base - new)).sum(-1)[counted])
        deltas.append((base - new).gather(1, ids[0, 1:, None])[:, 0][counted])
    assert found["kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)
    assert found["cross_entropy_delta"] == pytest.approx(float(torch.cat(deltas).mean()), rel=1e-3, abs=1e-6)
    assert found["tokens"] == len(torch.cat(kls))


def test_no_change_has_no_side_effects(lab_lm: LanguageModel) -> None:
    found = on_neutral_text(lab_lm, Change(), lab_lm.text.ids(TEXTS))
    assert found["kl"] == 0 and found["cross_entropy_delta"] == 0


def test_lost_tasks_look_at_the_direction_of_each_goal() -> None:
    before = {"addition": 1.0, "false_refusal": 0.0, "sycophancy": 0.8, "gender_bias_he": 0.9}
    after = {"addition": 0.95, "false_refusal": 0.1, "sycophancy": 0.2, "gender_bias_he": 0.91}
    found = lost_tasks(before, after, aimed=["sycophancy"])
    assert {each["task"] for each in found["lost"]} == {"addition", "false_refusal"} and found["of"] == 3
    assert {each["task"] for each in lost_tasks(before, after)["lost"]} == {"addition", "false_refusal", "sycophancy"}


def test_gains_follow_what_is_wanted() -> None:
    def target(wanted: str | float) -> Target:
        return Target("x", lambda changed: torch.zeros(1), wanted)

    assert target(HIGHER).gain(0.2, 0.5) == pytest.approx(0.3)
    assert target(LOWER).gain(0.2, 0.5) == pytest.approx(-0.3)
    assert target(0.5).gain(0.9, 0.45) == pytest.approx(0.35)


def test_the_verdict_weighs_interval_controls_and_losses() -> None:
    target = {"before": 0.8, "after": 0.2, "gain": 0.6, "gain_low": 0.5}
    assert verdict_of(target, {"random": {"gain": 0.1}}, {}) == "It works: 0.8 to 0.2, further than every control."
    assert "but prompting does as well" in verdict_of(target, {"prompting": {"gain": 0.55}}, {})
    assert "at the price of addition" in verdict_of(target, {}, {"tasks": {"lost": [{"task": "addition"}]}})
    assert verdict_of(target | {"gain_low": -0.1}, {}, {}).startswith("Not shown to work")
    tiny = {"before": 0.999, "after": 1.0, "gain": 0.001, "gain_low": 0.0005}
    assert verdict_of(tiny, {}, {}) == "It makes no difference that matters: 0.999 to 1."
