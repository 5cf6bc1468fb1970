"""One file of a user adds an architecture and a schedule; the command line trains, saves, indexes and measures with them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.kit.commands import Saekit

PLUGIN = '''
"""An SAE whose latents fire above a fixed margin and lose it: a soft threshold under an L1 penalty."""

import torch

from saekit.sae.activations import Threshold
from saekit.sae.registry import ARCHITECTURES, Architecture
from trainers.objectives.base import Objective, Outcome
from trainers.settings.schedules import SCHEDULES

MARGIN = 0.25


class SoftThreshold(Threshold):
    def floor(self, p):
        return p["b_enc"].new_full((1,), MARGIN)

    def values(self, pre, p):
        return pre - MARGIN


class Soft(Objective):
    def loss(self, p, x_BD, y_BE, now):
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        margin = torch.full_like(p.b_enc_F[:1], MARGIN)
        code = self.encoder.above(p, x_BD, margin, self.config.l0, backend="torch")
        code = code.with_values(code.values_N - MARGIN)
        squares = (self.decode(p, code) - y_BE).square().sum()
        loss = self.weight(x_BD) * squares + 0.002 * code.values_N.sum() / len(x_BD)
        return Outcome(loss, squares.detach(), code.detach())


activation = SoftThreshold()
ARCHITECTURES.register(
    "soft",
    Architecture(
        "soft_threshold_plugin:activation",
        "none",
        objective="soft_threshold_plugin:Soft",
        settings={"lr": 2e-3, "batch_size": 512},
    ),
)
SCHEDULES.register("stairs", lambda place: 0.5 ** int(4 * place.done))
'''


def test_a_plugin_adds_an_architecture(
    new_process: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "soft_threshold_plugin.py", tmp_path / "ws"
    file.write_text(PLUGIN)
    arguments = ("--site", "resid_post.2", "--data", tinystories_path, "--latents", 256, "--tokens", 20_000)
    fit = ("fit", stories_path, *arguments, "--train-tokens", 60_000, "--arch", "soft", "--schedule", "stairs", "--out", out)

    refused = new_process(*fit)
    assert refused.status == 2 and "no arch 'soft'" in refused.stderr and not out.exists()

    monkeypatch.setenv("SAEKIT_PLUGINS", str(file))
    made = new_process(*fit, "--json")
    assert made.status == 0, made.stderr
    folder = out / "sae" / "resid_post.2"
    assert json.loads((folder / "cfg.json").read_text())["architecture"] == "soft"
    config = json.loads((folder / "train.json").read_text())["config"]
    assert (config["arch"], config["lr"], config["batch_size"]) == ("soft", 2e-3, 512)
    rates = {row["lr"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "lr" in row}
    assert {2e-3, 1e-3, 5e-4, 2.5e-4} <= rates

    measured = new_process("eval", out, "--json")
    assert measured.status == 0, measured.stderr
    fvu = measured.json["fvu"] if "fvu" in measured.json else next(iter(measured.json["sites"].values()))["fvu"]
    assert 0 < fvu < 0.7 and math.isfinite(fvu)
    shown = new_process("show", out, 0, "--json")
    assert shown.status == 0, shown.stderr
    assert shown.json["ref"] == "feature:resid_post.2/0"

    monkeypatch.delenv("SAEKIT_PLUGINS")
    without = new_process("eval", out)
    assert without.status == 2 and "SAEKIT_PLUGINS" in without.stderr and "Traceback" not in without.stderr
