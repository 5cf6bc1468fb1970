"""The page of an evaluation, with all parts and with as few as possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.report import render_evaluation, write_evaluation
from tests.kit.html import check
from tests.kit.pages import EVIL, QUALITY

SCORE = {"accuracy": 0.8125, "auc": 0.9, "f1": 0.8, "average_precision": 0.6875}
FACTS: dict[str, Any] = QUALITY | {
    "cosine": 0.98,
    "shrinkage": 0.93,
    "dense_fraction": 0.125,
    "l0_quantiles": {"1%": 3, "50%": 16, "99%": 40},
    "fvu_by_norm": [
        {"from": 0.0, "to": 0.5, "norm": 2.0, "tokens": 700, "fvu": 0.25},
        {"from": 0.5, "to": 1.0, "norm": 5.0, "tokens": 300, "fvu": 0.0625},
    ],
    "density_histogram": {"edges": [-0.5, -0.25, 0.0], "counts": [7, 2]},
}


def _probe(absorption: dict[str, Any] | None) -> dict[str, Any]:
    by_k = {1: SCORE, 5: SCORE | {"accuracy": 0.9375}}
    concept = {"concept": EVIL, "dense": SCORE, "sparse": by_k, "coordinates": by_k, "latents": [31, 4], "absorption": absorption}
    means = {"concepts": 1, "dense": SCORE, "sparse": by_k, "coordinates": by_k}
    if absorption:
        means["absorption"] = absorption | {"concepts": 1, "main": 1.0}
    return {"examples": 1234, "means": means, "concepts": [concept], "missing": []}


def _transfer() -> dict[str, Any]:
    facts = {"fvu": 0.05, "cosine": 0.98, "l0": 16.0, "ce_recovered": 0.97, "kl": 0.1}
    return {"model": "base", "other": EVIL, "verdict": "transfers in part", "own": facts, "there": facts | {"fvu": 0.375}}


def test_everything_is_shown_and_nothing_runs() -> None:
    absorption = {"main": [31], "examples": 100, "fraction": 0.34375, "full": 0.15625, "absorber": 77}
    page = check(render_evaluation("resid_post.2", EVIL, FACTS | {"probe": _probe(absorption), "transfer": _transfer()}))
    shown = page.all_text
    for part in (
        f"on {EVIL}",
        "0.930",
        "12.50%",
        "75%",
        "93.8%",
        "1,234",
        "31 4",
        "34.4%",
        "15.6%",
        "77",
        "0.688",
        "transfers in part",
    ):
        assert part in shown, part
    assert len(page.charts) == 4
    assert page.charts[0]["data"][0]["type"] == "bar" and len(page.charts[0]["data"][0]["y"]) == 2


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    bare = FACTS | {
        "l0_quantiles": {"1%": 16, "99%": 16},
        "fvu_by_norm": FACTS["fvu_by_norm"][:1],
        "density_histogram": {"edges": [-0.25, 0.0], "counts": [0]},
    }
    path = write_evaluation("resid_post.2", "m", bare, tmp_path / "reports" / "x.html")
    page = check(path.read_text())
    assert not page.charts
    assert "Probes" not in page.all_text
    unabsorbed = check(render_evaluation("resid_post.2", "m", FACTS | {"probe": _probe(None)})).all_text
    assert "Probes" in unabsorbed
    assert "Absorbed:" not in unabsorbed
