"""What is killed again and again ends in what it would have made uninterrupted, bit for bit.

SAEKIT_KILLS=20 kills more often than the few times of every day.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saekit.workspace import Workspace
from tests.kit.commands import Saekit, command, environment
from trainers.loop.log import TIMING

KILLS = int(os.environ.get("SAEKIT_KILLS", "3"))


def files_of(workspace: Path) -> dict[str, bytes]:
    """Every file that is kept but those that tell times."""
    return {
        str(path.relative_to(workspace)): path.read_bytes()
        for folder in ("activations", "sae", "vectors", "reports")
        for path in sorted((workspace / folder).rglob("*"))
        if path.is_file() and path.name != TIMING and not path.match("reports/train-*.html")
    }


def _content(workspace: Path) -> dict[str, object]:
    """The files, and every row of the database without the times at which files were written."""
    with sqlite3.connect(workspace / "features.sqlite") as connection:
        rows = [re.sub(r",\d{19}\b", ",TIME", row) if 'INTO "file"' in row else row for row in connection.iterdump()]
    return {**files_of(workspace), "features.sqlite": rows}


def killed_in_time(
    arguments: tuple[object, ...], begun: Callable[[], bool], within: float | None, moments: random.Random
) -> bool:
    """Run a command and kill it when it has `begun` and a while later: so many seconds, or half again as long as that took.
    Whether it was killed in time."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    started = time.monotonic()
    while not begun() and process.poll() is None:  # loading takes its own time
        time.sleep(0.02)
    time.sleep(moments.uniform(0, within or 1.5 * (time.monotonic() - started)))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.timeout(1200)
def test_kill_at_random_moments(new_process: Saekit, fit_arguments: list[object], workspace: Path, tmp_path: Path) -> None:
    folder, moments = tmp_path / "ws", random.Random(0)
    arguments = (*fit_arguments, "--out", folder)
    killed = 0
    for _ in range(KILLS):
        killed += killed_in_time(arguments, (folder / "saekit.toml").exists, None, moments)
        assert not Workspace.open(folder).check(progress=False).damaged
    assert killed
    outcome = new_process(*fit_arguments, "--out", folder)
    assert outcome.status == 0, outcome.stderr
    assert new_process("verify", folder, "--json").json["ok"]
    expected, found = _content(workspace), _content(folder)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


SWEEP = """
site: resid_post.2
latents: 192
tokens: 60_000
batch_size: 256
checkpoint_tokens: 1_000        # so that many a kill hits one that is being written
eval_tokens: 512
dead_tokens: 5_000              # so that there is AuxK
runs:
  - {{arch: jumprelu, l0: 8, keep_best: fvu}}
  - {{arch: batchtopk, l0: 8}}
  - {{from: {source}, l0: 6, latents: 512, name: tuned}}
"""


@pytest.mark.timeout(1200)
def test_kill_a_sweep_at_random_moments(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    """Thresholds that are trained or averaged, a penalty that is adjusted, the best kept apart, and weights of another SAE."""
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.format(source=workspace / "sae" / "resid_post.2"))
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    for copy in (whole, folder):
        shutil.copytree(workspace, copy)
    started = time.monotonic()
    assert saekit("train", whole, "--sweep", file, "--json").status == 0
    within, moments, killed, torn = time.monotonic() - started, random.Random(1), 0, 0
    begun = folder / "sae" / "resid_post.2" / "tuned" / "metrics.jsonl"
    for _ in range(KILLS):
        killed += killed_in_time(("train", folder, "--sweep", file), begun.exists, within / (1 + KILLS / 4), moments)
        torn += any((folder / "sae").rglob(".saekit-*"))
        assert not Workspace.open(folder).check(progress=False).damaged
    assert killed
    print(f"killed {killed} times, {torn} of them while a checkpoint was written")
    outcome = saekit("train", folder, "--sweep", file, "--json")
    assert outcome.status == 0, outcome.stderr
    assert saekit("verify", folder, "--json").json["ok"]
    expected, found = files_of(whole), files_of(folder)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
