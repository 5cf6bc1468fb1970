"""Two processes that index together: the rows of one process, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feature_db import FeatureDB
from saekit.lm import LanguageModel
from tests.kit.contents import contents
from tests.kit.index_ranks import CONFIGS, index
from tests.kit.planted import PlantedStore
from tests.kit.two_processes import run_two

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_two_processes_index_as_one_does(store: PlantedStore, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    run_two("tests.kit.index_ranks", tmp_path, timeout=800)
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
