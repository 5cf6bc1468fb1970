"""saekit merge, given models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.kit.commands import Saekit
from tests.kit.merging import changed, rounded, save, weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(rounded(), root / "base")
    for seed, name in enumerate(("one", "two"), 1):
        save(changed(rounded(), seed), root / name)
    (root / "words.txt").write_text("w1 w2 w3 w4\n\nw5 w9 w9 w1\n")
    return root


def test_models_with_weights(saekit: Saekit, models: Path, tmp_path: Path) -> None:
    arguments = ("merge", f"{models / 'one'}:0.5", f"{models / 'two'}:-2", "--base", models / "base", "--method", "arithmetic")
    outcome = saekit(*arguments, "--option", "scale=0.5", "--out", tmp_path / "m", "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["method"] == "arithmetic" and outcome.json["folder"] == str(tmp_path / "m")
    assert [each["weight"] for each in outcome.json["models"]] == [0.5, -2]
    base, one, two = (weights(models / name) for name in ("base", "one", "two"))
    for name, found in weights(tmp_path / "m").items():
        expected = base[name] + 0.5 * (0.5 * (one[name] - base[name]) - 2 * (two[name] - base[name]))
        torch.testing.assert_close(found, expected, atol=2e-7, rtol=0)
    again = saekit(*arguments, "--out", tmp_path / "m", "--json")
    assert (again.status, again.json["error"]) == (2, "Unwritable")


def test_folders_of_models_are_recognised(saekit: Saekit, models: Path, tmp_path: Path) -> None:
    """TIES is the default, and needs --base; methods without a base need no option but --method."""
    outcome = saekit("merge", models / "one", models / "two", "--out", tmp_path / "m", "--json")
    assert outcome.status == 2 and "needs the base model" in outcome.json["message"]
    shown = saekit("merge", models / "one", models / "two", "--base", models / "base", "--out", tmp_path / "m")
    assert shown.status == 0, shown.stderr
    assert "trimmed" in shown.stdout and "signs conflict in" in shown.stdout and "Cosines" in shown.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").config.model_type == "llama"
    assert saekit("merge", models / "one", models / "two", "--method", "slerp", "--out", tmp_path / "s", "--json").status == 0


def test_methods_that_read_texts(saekit: Saekit, models: Path, tmp_path: Path) -> None:
    words = models / "words.txt"
    given = ("merge", models / "one", models / "two", "--base", models / "base", "--method")
    outcome = saekit(*given, "sens", "--data", words, "--data", words, "--out", tmp_path / "m", "--json")
    assert outcome.status == 0, outcome.stderr
    assert all(sum(row["shares"]) == pytest.approx(1) for row in outcome.json["found"]["coefficients"])
    assert saekit(*given, "aim", "--data", words, "--texts", 2, "--out", tmp_path / "a", "--json").status == 0
    outcome = saekit(*given, "ties", "--data", words, "--out", tmp_path / "t", "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "ConfigError") and "reads no texts" in outcome.json["message"]


def test_three_workspaces_are_refused(saekit: Saekit, tmp_path: Path) -> None:
    outcome = saekit("merge", "a", "b", "c", "--out", tmp_path / "m", "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "ConfigError") and "3 places" in outcome.json["message"]
