"""`torchrun -m saekit train`: one voice, one lock, the files of one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saekit.sae import SAE
from tests.kit.commands import Saekit, command, environment

pytestmark = pytest.mark.timeout(1800)  # on a busy core, processes that take turns are slow
SETTINGS = ("--latents", 128, "--l0", 8, "--train-tokens", 20_480, "--batch-size", 1024, "--json")


def test_two_processes_train_as_one_does(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    ws = Path(shutil.copytree(workspace, tmp_path / "ws"))
    alone = saekit("train", ws, "--name", "alone", *SETTINGS)
    assert alone.status == 0, alone.stderr
    run = command("train", ws, "--name", "together", *SETTINGS)[1:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *run]
    done = subprocess.run(torchrun, capture_output=True, text=True, env=environment(), timeout=1700)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)  # said once
    one, two = (Path(each["folder"]) for each in (*alone.json, row))
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert Path(row["report"]).exists()
    for a, b in zip(*((folder / "metrics.jsonl").read_text().splitlines() for folder in (one, two)), strict=True):
        assert json.loads(b) == pytest.approx(json.loads(a), rel=1e-3, abs=1e-6, nan_ok=True)
    first, second = SAE.load(one), SAE.load(two)
    torch.testing.assert_close(second.W_dec, first.W_dec, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second.W_enc, first.W_enc, rtol=1e-3, atol=1e-3 * float(first.W_enc.abs().max()))


def test_other_commands_are_for_one_process(saekit: Saekit, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = saekit("choose", workspace, "other", "--json")
    assert outcome.status == 2
    assert outcome.json["message"] == "Only `saekit train` and `saekit index` run in several processes."
    monkeypatch.setenv("RANK", "1")
    silent = saekit("choose", workspace, "other", "--json")
    assert (silent.status, silent.stdout) == (2, "")
