"""The command calibrate on a bare model."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.steer import Intervention, clamp
from tests.kit.commands import Saekit


def test_a_saved_intervention_is_calibrated(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "given.json", tmp_path / "out.json"
    clamp("neuron:2/17", "1max").save(given)
    settings = ("--intervention", given, "--data", tinystories_path, "--texts", 4)
    found = saekit("calibrate", stories_path, *settings, "--kl", 0.2, "--out", out, "--json").json
    assert found["kl"] == pytest.approx(0.2, rel=0.02) and found["kl_tail"] > found["kl"] and found["of"] == "mean"
    strength = Intervention.load(out).changes[0].strength
    assert strength.unit == "max" and strength.values[0] == pytest.approx(found["factor"])
    again = saekit("calibrate", stories_path, "--intervention", out, *settings[2:], "--kl", 0.2, "--json").json
    assert again["factor"] == pytest.approx(1, rel=0.02)


def test_what_is_missing_is_said(saekit: Saekit, stories_path: Path, tinystories_path: Path) -> None:
    assert "--feature, --ref, --vector" in saekit("calibrate", stories_path, "--data", tinystories_path).stderr
    assert "workspace" in saekit("calibrate", stories_path, "--data", tinystories_path, "--feature", "3").stderr
