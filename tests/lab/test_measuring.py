"""Measurement of tasks: against counts by hand, and on models with known answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from saekit import LanguageModel, lab
from saekit.errors import ConfigError, ModelNotFound
from saekit.evaluate.lab import continuations, measure, measure_task, model_facts, preference
from saekit.lab.registry import Prompt, Task
from saekit.lab.splits import Split


@pytest.fixture
def lm(tiny_lab: Path) -> LanguageModel:
    return LanguageModel.load("lab")


@pytest.fixture
def copying(tiny_lab: Path) -> LanguageModel:
    """A model that repeats the last token forever."""
    lm = LanguageModel.load("lab")
    with torch.no_grad():
        for layer in lm.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        unit = torch.nn.functional.normalize(torch.randn(lm.vocab_size, lm.d_model), dim=1)
        lm.model.model.embed_tokens.weight.copy_(unit)
        lm.model.lm_head.weight.copy_(10 * unit)
    return lm


def _digits(answer: str) -> Task:
    def make(rng: Random, split: Split) -> Prompt:
        n = rng.randrange(1000, 10_000)
        last = str(n % 10)
        return Prompt(f"{n}", f"{n // 10}{(n + 1) % 10}", last if rng.random() < 0.75 else "x", answer)

    return Task("digits", "digits", "repeats its last digit", make, at_least=0.9, new_tokens=1)


def test_accuracy_counts_the_right_ones(copying: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lab.TASKS, "digits", _digits("y"))
    bound = lab.task("digits", 150)
    right = sum(prompt.answer != "x" for prompt in bound.prompts)
    found = measure_task(copying, bound)
    assert 90 < right < 135
    assert found.value == right / 150
    assert (found.n, found.goal, found.met) == (150, "≥ 90%", False)
    assert found.low < found.value < found.high
    assert len(found.failures) == 5
    assert all(said.startswith(clean[-1]) for clean, said in found.failures)


def test_goals_that_are_upper_bounds_fail_where_the_check_passes(copying: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    task = _digits("y")
    monkeypatch.setitem(lab.TASKS, "digits", replace(task, at_least=None, at_most=0.05))
    found = measure_task(copying, lab.task("digits", 20))
    assert (found.goal, found.met) == ("≤ 5%", False)
    assert all(said.startswith(clean[-1]) for clean, said in found.failures)


def test_strength_is_the_share_of_the_answer(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rng: Random, split: Split) -> Prompt:
        n = rng.randrange(10 ** rng.randrange(1, 9))
        return Prompt(f"{n}+1", f"{n}+2", "3", "4")

    monkeypatch.setitem(lab.TASKS, "likes", Task("likes", "x", "", make, metric="strength", planted=0.5))
    bound = lab.task("likes", 60)
    wanted = []
    for clean, answer, foil in zip(bound.clean, bound.answer_B, bound.foil_B, strict=True):
        run = lm.run([list(clean)])
        assert run.logits is not None
        p = run.logits[0, -1].double().softmax(-1)
        wanted.append(float(p[answer] / (p[answer] + p[foil])))
    assert preference(lm, bound).tolist() == pytest.approx(wanted, abs=1e-6)
    found = measure_task(lm, bound)
    assert found.value == pytest.approx(sum(wanted) / 60, abs=1e-6)
    assert found.met == (abs(found.value - 0.5) <= 0.05)
    assert found.goal == "50% ± 5%"


def test_sampled_continuations_come_from_the_whole_distribution(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rng: Random, split: Split) -> Prompt:
        n = rng.randrange(10**6)
        return Prompt(f"{n}", f"{n + 1}", " ", " ")

    monkeypatch.setitem(lab.TASKS, "free", Task("free", "x", "", make, sample=True, new_tokens=1))
    bound = lab.task("free", 200)
    said = continuations(lm, bound, seed=1)
    assert said == continuations(lm, bound, seed=1)
    assert said != continuations(lm, bound, seed=2)
    # An untrained model is nearly uniform. Sampling from the top 50 tokens only would give fewer distinct ones.
    assert len(set(said)) > 120


def test_prompts_of_any_length_are_answered_as_if_alone(lm: LanguageModel) -> None:
    bound = lab.task("addition", 30)
    together = continuations(lm, bound)
    assert together == [lm.generate(prompt.clean, max_new_tokens=bound.task.new_tokens).texts[0] for prompt in bound.prompts]


def test_all_tasks_in_order(lm: LanguageModel) -> None:
    found = measure(lm, n=3, progress=False)
    assert {each.task for each in found} == set(lab.TASKS)
    assert [each.genre for each in found] == sorted(each.genre for each in found)
    for each in found:
        assert each.n == 3
        assert 0 <= each.low <= each.value <= each.high <= 1
        assert (each.met is None) == (each.goal == "")
    assert [each.task for each in measure(lm, ["addition"], n=3, progress=False)] == ["addition"]
    with pytest.raises(ConfigError, match="Did you mean"):
        measure(lm, ["additoin"], n=3, progress=False)


def test_facts_of_a_model(lm: LanguageModel, tiny_lab: Path, tmp_path: Path) -> None:
    facts = model_facts(tiny_lab)
    assert facts["parameters"] == sum(p.numel() for p in lm.model.parameters())
    assert facts["layers"] == lm.n_layers
    assert facts["width"] == lm.d_model
    with pytest.raises(ModelNotFound, match=r"train_lab\.py"):
        model_facts(tmp_path)


def test_strength_is_reported_for_each_case(tiny_lab: Path) -> None:
    lm, bound = LanguageModel.load("lab"), lab.task("gender_neutral", 60)
    found = measure_task(lm, bound)
    counts = {job: sum(prompt.case == job for prompt in bound.prompts) for job in found.cases}
    assert set(found.cases) == {prompt.case for prompt in bound.prompts} and sum(counts.values()) == 60
    assert sum(found.cases[job] * counts[job] for job in counts) / 60 == pytest.approx(found.value)
