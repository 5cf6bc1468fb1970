"""The commands of the laboratory, and a study of it by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saekit import lab
from tests.kit.commands import Saekit


@pytest.mark.parametrize("name", ["info", "sample", "concepts"])
def test_help_has_an_example(saekit: Saekit, name: str) -> None:
    outcome = saekit("lab", name, "--help")
    assert outcome.status == 0
    assert "Example" in outcome.stdout
    assert "--json" in outcome.stdout


def test_the_data_sheet(saekit: Saekit, tiny_lab: Path) -> None:
    sheet = saekit("lab", "info", "--no-measure", "--json").json
    assert {each["genre"] for each in sheet["genres"]} == set(lab.GENRES)
    assert sum(each["share"] for each in sheet["genres"]) == pytest.approx(1)
    assert sheet["concepts"] == len(lab.CONCEPTS)
    assert sheet["model"]["layers"] == 2
    assert sheet["tasks"] == []
    (tiny_lab / "training.json").write_text(json.dumps({"plan": {"seed": 4}, "tokens": 24_000_000, "history": [1, 2]}))
    try:
        assert saekit("lab", "info", "--no-measure", "--json").json["model"]["training"]["tokens"] == 24_000_000
        shown = saekit("lab", "info", "--no-measure").stdout
    finally:
        (tiny_lab / "training.json").unlink()
    assert "tokens 24,000,000" in shown
    assert "seed 4" in shown
    for name in lab.GENRES:
        assert name in shown


def test_the_data_sheet_measures_every_task(saekit: Saekit, tiny_lab: Path) -> None:
    shown = saekit("lab", "info", "--prompts", 2, "--model", tiny_lab)
    assert shown.status == 0, shown.stderr
    assert "not met" in shown.stdout
    for task in lab.TASKS.values():
        assert task.name in shown.stdout


def test_samples(saekit: Saekit) -> None:
    genre = sorted(lab.GENRES)[0]
    rows = saekit("lab", "sample", "--genre", genre, "--split", "heldout", "-n", 3, "--seed", 2, "--json").json
    wanted = list(lab.documents(genre, "heldout", 2, n=3))
    assert [row["text"] for row in rows] == [each.text for each in wanted]
    assert [len(row["spans"]) for row in rows] == [len(each.spans) for each in wanted]
    shown = saekit("lab", "sample", "-n", 4).stdout
    for each in lab.documents(n=4):
        for concept in {span.concept for span in each.spans}:
            assert concept in shown
    assert saekit("lab", "sample", "--genre", "nothing").status == 2


def test_a_study_of_the_laboratory_by_name(
    saekit: Saekit, tiny_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--latents", 64, "--k", 4, "--tokens", 20_000, "--train-tokens", 40_000, "--packing", "document")
    made = saekit("fit", "lab", *arguments, "--json")
    assert made.status == 0, made.stderr
    workspace = tmp_path / made.json["workspace"]
    assert 'model = "lab"' in (workspace / "saekit.toml").read_text()
    assert 'data = "lab"' in (workspace / "saekit.toml").read_text()
    manifest = json.loads((workspace / "activations" / "manifest.json").read_text())
    assert '"lab": "all genres"' in json.dumps(manifest)
    assert saekit("fit", "lab", *arguments, "--json").json["tokens"] == made.json["tokens"]  # resumes, and finds everything done

    (facts,) = saekit("lab", "concepts", workspace, "--documents", 300, "--json").json
    assert facts["site"] == "resid_post.1"
    f1 = [each["f1"] for each in facts["concepts"]]
    assert len(f1) > 20
    assert f1 == sorted(f1, reverse=True)
    assert facts["encoded"] == sum(value >= 0.5 for value in f1)
    assert facts["by_auc"]["high"] == sum(each["by_auc"]["auc"] >= 0.9 for each in facts["concepts"])
    assert facts["contextual"]["auc_in_context"]["concepts"] == sum(each["contextual"] for each in facts["concepts"])
    assert all(each["auc_same_words"] is None for each in facts["concepts"] if each["lexical"])
    assert sum(facts["outcomes"].values()) == len(facts["concepts"])
    shown = saekit("lab", "concepts", workspace, "--documents", 300).stdout
    assert f"{facts['encoded']} of {len(f1)} concepts are encoded" in shown
    assert "between occurrences of one and the same token" in shown
    assert shown.index(facts["concepts"][0]["concept"]) < shown.index(facts["concepts"][-1]["concept"])
