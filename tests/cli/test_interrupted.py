"""A fit that is killed again and again ends in what an uninterrupted one makes."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Saekit, command, environment
from trainers.log import TIMING

KILLS = int(os.environ.get("SAEKIT_KILLS", "3"))


def _content(workspace: Path) -> dict[str, object]:
    """Every file that is kept but those that tell times, and every row of the database."""
    files = {
        str(path.relative_to(workspace)): path.read_bytes()
        for folder in ("activations", "sae", "vectors", "reports")
        for path in sorted((workspace / folder).rglob("*"))
        if path.is_file() and path.name != TIMING and not path.match("reports/train-*.html")
    }
    with sqlite3.connect(workspace / "features.sqlite") as connection:
        rows = list(connection.iterdump())
    return {**files, "features.sqlite": rows}


@pytest.mark.timeout(1200)
def test_kill_at_random_moments(new_process: Saekit, fit_arguments: list[object], workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    moments = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(*fit_arguments, "--out", folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        began = time.monotonic()
        while not (folder / "saekit.toml").exists() and process.poll() is None:  # loading takes its own time
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1.5 * (time.monotonic() - began)))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    outcome = new_process(*fit_arguments, "--out", folder)
    assert outcome.status == 0, outcome.stderr
    expected, found = _content(workspace), _content(folder)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
