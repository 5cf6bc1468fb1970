"""What every report has: data, and one table made from the data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from saekit.evaluate.dictionary.probes import Probe, Probes, Score
from saekit.evaluate.dictionary.quality import Quality
from saekit.evaluate.dictionary.transfer import Transfer
from saekit.evaluate.registry import EVALUATIONS
from saekit.evaluate.report import Report, Table
from saekit.evaluate.steering.compare import Comparison
from saekit.evaluate.steering.dose_response import Arm, Point, Sweep
from saekit.evaluate.steering.mentions import Rate
from saekit.plugins import resolve
from saekit.steer.intervention import Intervention
from saekit.steer.strength import Strength
from tests.report.test_evaluation import FACTS

SCORE = Score(0.9, 0.95, 0.9, 0.93)
BY_K = {1: SCORE, 2: SCORE}
MEASURED = dict.fromkeys(("fvu", "cosine", "l0", "dead_fraction", "ce", "ce_zero", "ce_recovered", "kl"), 0.5)
ARM = Arm(["a cat"], Rate(1, 10), 4.0)
REPEATED = {"distinct_2": 1.0, "ngram_entropy": float("nan")}
REPORTS: list[Report] = [
    Quality(FACTS),
    Probes(
        "resid_post.1", (Probe("cats", 40, 40, SCORE, {1: SCORE, 2: SCORE}, {1: SCORE, 2: SCORE}, (3, 1), None),), ("dogs",), 80
    ),
    Transfer("base", "chat", MEASURED, MEASURED),
    Sweep(["a"], 1, ARM, [Point(Strength(0.5, "norm"), ARM, ARM)]),
    Comparison(
        ["a"],
        ["b"],
        ["c"],
        ["d"],
        0.1,
        0.2,
        {"baseline": 4.0, "steered": 5.0, "random": 4.5},
        dict.fromkeys(("baseline", "steered", "random"), REPEATED),
        Intervention(()),
    ),
    Table("mine", [{"a": 1, "b": "two"}], ["three"]),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_the_table_is_made_from_the_data_as_json_has_them(report: Report) -> None:
    data: dict[str, Any] = json.loads(json.dumps(report.to_dict()))
    title, rows, summary = type(report).section_of(data)
    assert (title, rows, summary) == tuple(report.section)
    assert title and rows and all(row.keys() == rows[0].keys() for row in rows)
    lines = report.table().splitlines()
    assert len(lines) == len(rows) + 1
    assert all(str(name) in lines[0] for name in rows[0])


def test_every_registered_evaluation_has_a_report_that_shows_stored_results() -> None:
    for name, row in EVALUATIONS.items():
        assert issubclass(resolve(row.report), Report), name
        assert callable(resolve(row.measure)), name
        assert row.check is None or callable(resolve(row.check)), name
        assert row.help.endswith("."), name
