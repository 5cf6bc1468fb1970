"""Runs that are killed (SIGKILL) while they write and run again end in the bytes of an uninterrupted run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.runs import files


@pytest.mark.parametrize("variant", ["abstopk", "whitened", "tsae", "end_to_end"])
def test_killed_runs_end_in_the_same_bytes(variant: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.kit.crash_train", str(tmp_path), variant],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 3
    whole = files(tmp_path / "whole")
    assert {"cfg.json", "sae_weights.safetensors", "metrics.jsonl"} <= whole.keys()
    for folder in tmp_path.glob("killed-*"):
        assert files(folder) == whole, folder.name
