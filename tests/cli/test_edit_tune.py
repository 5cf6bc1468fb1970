"""`saekit edit tune`: files in, a measured edit out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saekit.lm import LanguageModel
from saekit.steer.optimise import ActivationEdit, WeightMask, parameters
from saekit.steer.weights import WeightDelta
from tests.kit.commands import Saekit

NAMES = ("Tom", "Lily", "Sam", "Mia", "Ben", "Sue", "Tim", "Amy")
ROWS = [{"clean": f"{name} saw a big", "corrupted": f"{name} saw a big", "answer": " dog", "foil": " cat"} for name in NAMES]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "dogs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture
def neutral(tinystories_path: Path) -> list[object]:
    return ["--neutral", tinystories_path, "--neutral-texts", 8, "--steps", 12, "--batch", 4, "--json"]


def share(lm: LanguageModel, rows: list[dict[str, str]]) -> float:
    """P(dog) / (P(dog) + P(cat)) by the bare model."""
    found = []
    for row in rows:
        ids = lm.text.ids([row["clean"] + row[each] for each in ("answer", "foil")])
        n = next(place for place, (one, other) in enumerate(zip(*ids)) if one != other)
        logits = lm.model(input_ids=torch.tensor([ids[0][:n]])).logits[0, -1]
        found.append(float(logits[[ids[0][n], ids[1][n]]].softmax(0)[0]))
    return sum(found) / len(found)


@torch.no_grad()
def test_masked_tuning_from_a_file(
    saekit: Saekit, stories_path: Path, stories_lm: LanguageModel, prompts: Path, neutral: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "parity.safetensors"
    refs = ("--ref", "head:4.1", "--ref", "neuron:3/5")
    asked = ("edit", "tune", stories_path, "--data", prompts, "--objective", "share", "--option", "share=0.9", *refs)
    outcome = saekit(*asked, *neutral, "--lr", 0.01, "--out", path)
    assert outcome.status == 0, outcome.stderr
    facts = outcome.json
    mask = WeightMask.of(stories_lm, ["head:4.1", "neuron:3/5"])
    assert facts["parameters"] == {"count": mask.count, "share": mask.count / parameters(stories_lm)}
    assert facts["target"]["rows"] == 2  # the last quarter
    assert facts["target"]["before"]["share"] == pytest.approx(share(stories_lm, ROWS[6:]), abs=1e-5)
    delta = WeightDelta.load(path, stories_lm)
    with stories_lm.edited(delta):
        assert facts["target"]["after"]["share"] == pytest.approx(share(stories_lm, ROWS[6:]), abs=1e-5)
    before, after = (abs(facts["target"][when]["share"] - 0.9) for when in ("before", "after"))
    assert after < before - 0.05
    assert 0 < facts["preservation"]["kl"] < 1
    assert facts["losses"][-1] < facts["losses"][0]
    assert delta.facts["measured"]["target"] == facts["target"]


def test_activation_edits_and_rankings(
    saekit: Saekit, stories_path: Path, stories_lm: LanguageModel, prompts: Path, neutral: list[object], tmp_path: Path
) -> None:
    path, ranking = tmp_path / "reft.safetensors", tmp_path / "heads.json"
    asked = ("edit", "tune", stories_path, "--data", prompts, *neutral)
    outcome = saekit(*asked, "--method", "reft", "--site", "resid_post.2", "--option", "rank=2", "--out", path)
    assert outcome.status == 0, outcome.stderr
    assert ActivationEdit.load(path, stories_lm).count == outcome.json["parameters"]["count"] == 2 * 64 * 2 + 2
    assert outcome.json["target"]["after"]["cross_entropy"] < outcome.json["target"]["before"]["cross_entropy"]
    located = saekit("locate", stories_path, "--task", prompts, "--space", "heads", "--first-token", "--save", ranking, "--json")
    assert located.status == 0, located.stderr
    outcome = saekit(*asked, "--method", "pinpoint", "--ranking", ranking, "--fraction", 0.04, "--out", path)
    assert outcome.status == 0, outcome.stderr
    assert 0.02 < outcome.json["parameters"]["share"] <= 0.04
    assert WeightDelta.load(path).facts["method"] == "pinpoint"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "none are given"),
        (("--ref", "head:9.9"), "no heads.9"),
        (("--ref", "head:1.1", "--objective", "forget"), "takes no task"),
        (("--ref", "head:1.1", "--option", "rank=2"), "no option 'rank'"),
        (("--ref", "head:1.1", "--ranking", "x.json"), "both given"),
        (("--method", "nothing"), "no method of tuning"),
        (("--ref", "head:1.1", "--fraction", 0.00001), "more weights than"),
        (("--ref", "head:1.1", "--lr", "nan"), "lr is nan"),
    ],
)
def test_what_cannot_be_tuned_ends_with_a_message(
    saekit: Saekit, stories_path: Path, prompts: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    path = tmp_path / "edit.safetensors"
    outcome = saekit("edit", "tune", stories_path, "--data", prompts, "--out", path, *arguments, "--json")
    assert outcome.status == 2
    assert message in outcome.stderr + outcome.stdout
    assert not path.exists()
    assert saekit("edit", "tune", stories_path, "--data", prompts, "--ref", "head:1.1").status == 2  # no --out
    assert saekit("edit", "tune", stories_path, "--data", prompts, "--ref", "head:1.1", "--out", tmp_path / "x.pt").status == 2
