"""Which dictionary of a sweep is recommended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from saekit.report import rank, render_sweep
from tests.kit.html import check
from trainers import Plan, Route, TrainConfig

GOOD = {
    "fvu": 0.30,
    "fvu_train": 0.29,
    "l0": 16.0,
    "l0_train": 16.0,
    "ce": 2.0,
    "ce_spliced": 2.3,
    "ce_zero": 7.0,
    "baseline": "zero",
    "ce_uniform": math.log(512),
    "ce_recovered": 0.94,
    "kl": 0.1,
    "dead_fraction": 0.0,
}


def ranked(*metrics: dict[str, Any]) -> dict[str, Any]:
    """The dictionaries by name: a, b, ..."""
    config = TrainConfig(n_latents=64, l0=8, tokens=1000).resolve(16)
    plans = [Plan(Route.parse("resid_post.1"), config, Path("sae/resid_post.1") / name, name=name) for name in "abc"]
    return {each.name: each for each in rank(plans[: len(metrics)], metrics)}


def test_an_overfitted_dictionary_is_named_and_never_on_the_front() -> None:
    overfitted = GOOD | {"fvu": 0.25, "fvu_train": 0.1, "l0": 14.0}
    found = ranked(overfitted, GOOD)
    assert found["a"].verdict == "overfitted" and not found["a"].best
    assert found["b"].verdict == "on the front" and found["b"].best
    assert found["a"].row()["verdict"] == "overfitted"


def test_more_latents_that_fire_on_held_out_documents_is_overfitting() -> None:
    found = ranked(GOOD | {"fvu": 0.2, "fvu_train": 0.19, "l0": 36.0}, GOOD)
    assert found["a"].verdict == "overfitted"


def test_a_dictionary_with_which_the_model_is_at_chance_is_never_on_the_front() -> None:
    found = ranked(GOOD | {"l0": 4.0, "l0_train": 4.0, "fvu": 0.1, "fvu_train": 0.1, "ce_spliced": 6.3}, GOOD)
    assert found["a"].verdict == "no better than chance" and not found["a"].best
    assert found["b"].best


def test_the_page_says_that_no_document_was_held_out() -> None:
    facts = GOOD | {"heldout_tokens": 0}
    page = check(render_sweep("Sweep", list(ranked(facts).values()), linked=False))
    assert "measured on training documents" in page.all_text
    held = check(render_sweep("Sweep", list(ranked(GOOD | {"heldout_tokens": 9}).values()), linked=False))
    assert "measured on held-out documents" in held.all_text


def test_the_page_says_which_are_overfitted() -> None:
    found = ranked(GOOD | {"fvu_train": 0.1}, GOOD | {"l0": 8.0, "l0_train": 8.0})
    page = check(render_sweep("Sweep", list(found.values()), linked=False))
    assert "overfitted" in page.all_text and "on the front" in page.all_text
