"""The commands compare, and card with tasks, on a bare model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saekit.steer import clamp
from tests.kit.commands import Saekit
from tests.kit.html import check


@pytest.fixture
def settings(tinystories_path: Path, tmp_path: Path) -> tuple[object, ...]:
    clamp("neuron:2/17", "2max").save(tmp_path / "given.json")
    return ("--intervention", tmp_path / "given.json", "--data", tinystories_path, "--texts", 4)


def test_compare_prints_every_arm_at_equal_cost(
    saekit: Saekit, stories_path: Path, settings: tuple[object, ...], tmp_path: Path
) -> None:
    page, contrast = tmp_path / "page.html", tmp_path / "contrast.jsonl"
    pairs = [{"positive": f"The happy <dog> {n} ran.", "negative": f"The sad dog {n} sat."} for n in range(4)]
    contrast.write_text("\n".join(map(json.dumps, pairs)))
    goal = ("--word", "girl", "--at-kl", 0.05, "--prompting", "A <b>girl</b>. ", "--contrast", contrast, "--max-new-tokens", 8)
    found = saekit("compare", stories_path, "One day", "There was", *settings, *goal, "--html", page, "--json")
    assert found.status == 0, found.stderr
    arms = {each["arm"]: each for each in found.json["points"]}
    assert set(arms) == {"steered", "random_direction", "prompting", "mean_difference"} and not found.json["failures"]
    assert all(each["kl"] == pytest.approx(0.05, rel=0.03) for name, each in arms.items() if name != "prompting")
    assert {each["other"] for each in found.json["differences"]} == set(arms) - {"steered"}
    assert found.json["words"] == ["girl"]
    text = page.read_text("utf-8")
    assert "<b>girl" not in text and "mean difference" in text and len(check(text).charts) == 1
    shown = saekit("compare", stories_path, "One day", *settings, *goal[:4], "--max-new-tokens", 8)
    assert shown.status == 0 and "random direction" in shown.stdout and "success: a word of 'girl'; 1 prompts" in shown.stdout


def test_a_contrast_without_pairs_is_refused(saekit: Saekit, stories_path: Path, settings: tuple[object, ...]) -> None:
    outcome = saekit("compare", stories_path, *settings, "--contrast", "gen:pronouns", "--json")
    assert outcome.status == 2 and "is no contrast" in outcome.json["message"]


def test_card_measures_tasks(saekit: Saekit, stories_path: Path, settings: tuple[object, ...]) -> None:
    found = saekit("card", stories_path, *settings, "--task", "gen:pronouns", "--no-controls", "--json")
    assert found.status == 0, found.stderr
    probe = found.json["capabilities"]["gen:pronouns"]
    assert 0 <= probe["value"] <= 1 and probe["n"] == 50 and found.json["controls"] == {}
    shown = saekit("card", stories_path, *settings, "--task", "gen:pronouns", "--no-controls").stdout
    assert "gen:pronouns" in shown and "control" not in shown
