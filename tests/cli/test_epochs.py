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


def test_many_passes_are_told_before_training_too(saekit: Saekit, tmp_path: Path) -> None:
    """In fit, and in train from a store, live and in a sweep, where the store holds the whole corpus."""
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"text": f"The cat number {n} sat on a mat."}) + "\n" for n in range(60))
    )
    ws, few = tmp_path / "ws", ("--latents", 32, "--k", 4, "--batch-size", 64, "--train-tokens", 6000)
    outcome = saekit("fit", "lab", "--site", "resid_post.1", "--data", tmp_path / "x.jsonl", *few, "--out", ws, "--json")
    assert outcome.status == 0, outcome.stderr
    rows = ActivationReader(ActivationStore.open(ws / "activations"), ["resid_post.1"], batch_size=1).n_tokens
    passes = 6000 / rows
    assert passes > 5
    line = f"Training passes {passes:.3g} times over {rows:,} tokens (epochs)"
    assert line in outcome.stderr
    assert outcome.json["sites"]["resid_post.1"]["epochs"] == pytest.approx(passes, abs=1e-3)
    (tmp_path / "sweep.yaml").write_text("grid:\n  l0: [2, 3]\n")
    for more in (("--name", "again"), ("--name", "live", "--live"), ("--sweep", tmp_path / "sweep.yaml")):
        outcome = saekit(
            "train", ws, "--site", "resid_post.1", *(few[:2] if "--sweep" in more else few[:4]), *few[4:], *more, "--json"
        )
        assert outcome.status == 0, outcome.stderr
        assert line in outcome.stderr
    for record in ws.glob("sae/*/**/train.json"):
        assert json.loads(record.read_text())["epochs"] == pytest.approx(passes, abs=1e-3)
