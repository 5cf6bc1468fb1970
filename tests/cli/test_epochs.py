"""How many times a run reads the cached activations is said: in its log, in the table, and in --json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from saekit.activations import ActivationReader, ActivationStore
from tests.kit.commands import Saekit


def test_epochs_and_final_metrics_are_told(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    shutil.copytree(workspace, folder)
    rows = ActivationReader(ActivationStore.open(folder / "activations"), ["resid_post.2"], batch_size=1).n_tokens
    assert json.loads((folder / "sae/resid_post.2/train.json").read_text())["epochs"] == pytest.approx(400_000 / rows, abs=1e-3)
    asked = ("train", folder, "--site", "resid_post.2", "--latents", 64, "--k", 4, "--train-tokens", 30_000, "--name", "small")
    (told,) = saekit(*asked, "--json").json
    assert told["epochs"] == pytest.approx(30_000 / rows, abs=1e-3)
    assert 0 < told["fvu_train"] < 1 and 0 < told["fvu"] < 1
    shown = saekit(*asked).stdout
    assert "epochs" in shown and str(told["epochs"])[:4] in shown
