"""Two processes that index together: the rows of one process, bit for bit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from feature_db import FeatureDB
from saekit.lm import LanguageModel
from tests.kit.contents import contents
from tests.kit.index_ranks import CONFIGS, index
from tests.kit.planted import PlantedStore

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_two_processes_index_as_one_does(store: PlantedStore, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.kit.index_ranks", str(tmp_path)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **where, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=800)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    for name, config in CONFIGS.items():
        straight = index(tmp_path / "straight" / name / "f.sqlite", store, config)
        assert contents(tmp_path / name / "f.sqlite") == contents(straight.path)
        with FeatureDB.open(tmp_path / name / "f.sqlite") as db:
            assert len(db.saes()) == reports[0]["saes"] == 3 and db.verify() == []
    assert contents(tmp_path / "resumed" / "f.sqlite") == contents(tmp_path / "pairs" / "f.sqlite")
    for report in reports:
        assert report["broken"] == 2 and len(report["checkpoint"]) == 1 and 1500 < report["start"][0] <= 2300
    assert {report["nan"] for report in reports} <= {"NonFiniteActivations", "ParallelError"}
    assert "NonFiniteActivations" in {report["nan"] for report in reports}
    assert not (tmp_path / "nan" / "f.sqlite").exists()
