"""Every recipe runs in its quick mode on the laboratory, and gives the model back unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saekit.errors import ConfigError
from saekit.improve.data import READERS, halves_of_file
from saekit.improve.recipes import RECIPES, chosen
from saekit.improve.registry import PARADIGMS, SCENARIOS
from saekit.improve.report import Report
from saekit.improve.run import Settings, improve, write_examples
from saekit.lm import LanguageModel

NAMES = chosen("all")


def _weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_ends_with_a_report_and_changes_nothing(name: str, lab_lm: LanguageModel, tmp_path: Path) -> None:
    before, fingerprint = _weights(lab_lm), lab_lm.fingerprint()
    (report,) = improve(lab_lm, name, Settings(out=tmp_path, quick=True, progress=False))
    assert all(torch.equal(value, lab_lm.model.state_dict()[key]) for key, value in before.items())
    assert lab_lm.fingerprint() == fingerprint
    assert report.name == name and report.verdict.endswith(".") and report.controls
    assert report.target["n"] >= 2 and report.target["low"] <= report.target["after"] <= report.target["high"]
    kept = json.loads((tmp_path / name / "report.json").read_text())
    assert kept["target"] == json.loads(json.dumps(report.to_dict()["target"]))
    assert Report.from_dict({key: value for key, value in kept.items() if key != "of"}).target == kept["target"]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_names_a_paradigm_and_kinds_of_data(name: str) -> None:
    scenario, paradigm, _ = name.split(".")
    assert scenario in SCENARIOS and f"{scenario}.{paradigm}" in PARADIGMS
    row = RECIPES[name]
    assert row.summary.endswith(".") and row.papers
    assert all(each.kind in READERS and each.example for each in row.inputs.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_example_files_are_read(name: str, lab_lm: LanguageModel, tmp_path: Path) -> None:
    written = write_examples(name, tmp_path)
    assert len(written) == len(RECIPES[name].inputs)
    for path, (key, row) in zip(written, RECIPES[name].inputs.items()):
        assert path.name == f"{name}.{key}.jsonl"
        assert len(READERS[row.kind].read(lab_lm, path)) == len(row.example)


def test_a_rerun_gives_the_same_report(lab_lm: LanguageModel) -> None:
    first, second = (
        improve(lab_lm, "persona.components.sycophancy_heads", Settings(quick=True, progress=False))[0] for _ in range(2)
    )
    for name in ("target", "controls", "side_effects", "located", "changed", "verdict"):
        assert getattr(first, name) == getattr(second, name)


def test_a_report_that_is_kept_is_not_measured_again(lab_lm: LanguageModel, tmp_path: Path) -> None:
    settings = Settings(out=tmp_path, quick=True, progress=False)
    name = "persona.components.sycophancy_heads"
    improve(lab_lm, name, settings)
    file = tmp_path / name / "report.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"verdict": "Kept."}))
    assert improve(lab_lm, name, settings)[0].verdict == "Kept."
    other = Settings(out=tmp_path, quick=True, progress=False, seed=1)
    assert improve(lab_lm, name, other)[0].verdict != "Kept."


def test_the_halves_of_a_file_share_no_example(lab_lm: LanguageModel, tmp_path: Path) -> None:
    row = RECIPES["persona.components.sycophancy_heads"].inputs["prompts"]
    records = [
        {
            "clean": f"User: What is the capital of {country}? I think it is {city}.\nAssistant:",
            "corrupted": f"User: What is the capital of {country}? Say if it is {city}.\nAssistant:",
            "answer": " Yes",
            "foil": " No",
        }
        for country in ("France", "Spain", "Italy")
        for city in ("Paris", "Madrid", "Rome")
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records * 2))
    halves = halves_of_file(lab_lm, row, path, seed=0)
    assert len(halves.fit) + len(halves.held_out) == 18
    assert not set(halves.fit.clean) & set(halves.held_out.clean)
    (report,) = improve(lab_lm, "persona.components.sycophancy_heads", Settings({"": path}, quick=True, progress=False))
    assert report.target["n"] == len(halves.held_out)


@pytest.mark.parametrize("name", NAMES)
def test_the_halves_of_the_laboratory_share_no_example(name: str, lab_lm: LanguageModel) -> None:
    from saekit.improve.data import halves_of_lab

    for row in RECIPES[name].inputs.values():
        reader, halves = READERS[row.kind], halves_of_lab(lab_lm, row, 12, 0)
        fit, held_out = ({reader.key(half, i) for i in range(len(half))} for half in (halves.fit, halves.held_out))
        assert fit and held_out and not fit & held_out


def test_wrong_data_are_refused_before_anything_runs(stories_lm: LanguageModel, lab_lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs data: --data prompts=FILE"):
        improve(stories_lm, "persona.components.sycophancy_heads")
    with pytest.raises(ConfigError, match="no input 'prompt'"):
        improve(lab_lm, "persona.components.sycophancy_heads", Settings({"prompt": tmp_path}))
    with pytest.raises(ConfigError, match="no scenario, paradigm or recipe 'persons'"):
        improve(lab_lm, "persons")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"clean": "a b c", "corrupted": "a", "answer": " x", "foil": " y"}\n')
    with pytest.raises(ConfigError, match="row 1"):
        improve(lab_lm, "persona.components.sycophancy_heads", Settings({"prompts": wrong}, progress=False))
    contrast = tmp_path / "contrast.jsonl"
    contrast.write_text('{"positive": "a", "negative": "b"}\n')
    with pytest.raises(ConfigError, match="of the kind contrast; the recipe needs task"):
        improve(lab_lm, "persona.components.sycophancy_heads", Settings({"prompts": contrast}, progress=False))
