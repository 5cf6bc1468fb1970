from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saekit.evaluate.steering.card import Card, CardSettings, card
from saekit.evaluate.steering.degenerate import repetition, warnings_of
from saekit.lm import LanguageModel
from saekit.steer import Intervention, Vector, add
from tests.kit.commands import Saekit

TEXTS = ["Once upon a time, there was a big dog.", "Lily.", "The cat ran to the tree. It was very happy and"]
QUICK = CardSettings(prompts=("Once upon a time", "The cat"), max_new_tokens=16)
KEYS = {
    "kl",
    "kl_tail",
    "cross_entropy_delta",
    "perplexity",
    "repetition",
    "distinct_2",
    "capabilities",
    "collateral",
    "controls",
}


def push(lm: LanguageModel, amount: float) -> Intervention:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    return add(Vector(lm.site("resid_post.2"), vector), amount).resolve(lm)


def test_the_figures_are_those_of_each_text_alone(lm: LanguageModel) -> None:
    made = push(lm, 0.4)
    found = card(lm, made, lm.text.ids(TEXTS), QUICK)
    kls, rises, moved, whole = [], [], 0.0, 0.0
    sae = lm.dictionaries[lm.site("resid_post.3")]
    for row in lm.text.ids(TEXTS):
        runs = [lm.run([row], edits=e, positions="all", read=["resid_post.3"], logits="all") for e in ([], [made])]
        p, q = (run.logits[0].double().log_softmax(-1) for run in runs)  # type: ignore[index]
        kls += (p.exp() * (p - q)).sum(-1)[1:].tolist()
        rises += [float(p[t, row[t + 1]] - q[t, row[t + 1]]) for t in range(1, len(row) - 1)]
        a, b = (sae.encode_dense(run.acts[lm.site("resid_post.3")][0, 1:]).double() for run in runs)
        moved, whole = moved + float((b - a).abs().sum()), whole + float(a.abs().sum())
    assert found.kl["value"] == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert found.cross_entropy_delta["value"] == pytest.approx(sum(rises) / len(rises), rel=1e-3)
    worst = sorted(kls)[-math.ceil(0.05 * len(kls)) :]
    assert found.kl_tail["value"] == pytest.approx(sum(worst) / len(worst), rel=1e-3)
    assert set(found.collateral) == {"resid_post.3"}  # not the steered site, nor an earlier one
    assert found.collateral["resid_post.3"]["value"] == pytest.approx(moved / whole, rel=1e-2)
    assert set(found.controls) == {"random_direction", "random_feature"}
    assert all(each["kl"] == pytest.approx(found.kl["value"], rel=0.021) for each in found.controls.values())


def test_a_steer_that_repeats_one_word_warns(lm: LanguageModel) -> None:
    token = lm.text.ids(["the"])[0][-1]
    direction = lm.unembed(torch.eye(64))[:, token].detach()  # the direction in which its logit grows
    made = add(Vector(lm.site(f"resid_post.{lm.n_layers - 1}"), direction), 1000.0)
    quiet = CardSettings(QUICK.prompts, max_new_tokens=16, controls=False)
    found = card(lm, made, lm.text.ids(TEXTS), quiet)
    assert "repeat one word ('the')" in found.warnings[0] and found.distinct_2["value"] < 0.2
    assert not card(lm, push(lm, 0.01), lm.text.ids(TEXTS), quiet).warnings


def test_degenerate_texts_are_told() -> None:
    assert "empty" in warnings_of(["", "a fine text"])[0] and "'la'" in warnings_of(["la La la la la la la"])[0]
    assert not warnings_of(["the cat sat on the mat and slept"])
    assert repetition(["a a a b", ""]) == 0.75 and math.isnan(repetition([""]))


def test_the_command_saves_the_card(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path) -> None:
    from saekit.steer import clamp

    path = tmp_path / "made.json"
    clamp("neuron:2/17", 4.0).save(path)
    settings = ("--intervention", path, "--data", tinystories_path, "--texts", 2, "--no-controls")
    facts = saekit("card", stories_path, *settings, "--out", path, "--json").json
    assert facts.keys() >= KEYS and facts["controls"] == {}
    assert Intervention.load(path).notes["card"] == facts
    assert set(facts) == set(Card.__dataclass_fields__)


def test_probes_count_right_answers_with_and_without_steering(lm: LanguageModel) -> None:
    """Against plain runs, one prompt at a time."""
    from saekit.locate.data import DataChoice, data_of
    from saekit.tasks import Task

    task = data_of(lm, "gen:pronouns", DataChoice(6, first_token=True))
    assert isinstance(task, Task)
    made = push(lm, 2.0)
    found = card(lm, made, lm.text.ids(TEXTS), replace(QUICK, controls=False, probes={"pronouns": task})).capabilities["pronouns"]
    right = []
    for edits in ((), [made]):
        runs = [lm.run([list(row)], edits=edits, positions="all", logits="last").logits[0] for row in task.clean]  # type: ignore[index]
        pairs = zip(runs, task.answer_B.tolist(), task.foil_B.tolist())
        right.append([float(logits[answer] > logits[foil]) for logits, answer, foil in pairs])
    assert found["unsteered"] == sum(right[0]) / 6 and found["value"] == sum(right[1]) / 6 and found["n"] == 6
    assert found["change"] == pytest.approx(found["value"] - found["unsteered"])
    assert right[0] != right[1], "a push that changes no answer shows nothing"
