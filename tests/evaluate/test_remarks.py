"""Remarks on figures that look better than the dictionary is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from saekit.evaluate.dictionary.remarks import overfitted, remarks, useless

GOOD: dict[str, Any] = {
    "fvu": 0.23,
    "fvu_train": 0.22,
    "fvu_trimmed": 0.21,
    "l0": 16.2,
    "l0_train": 16.0,
    "l0_asked": 16,
    "ce": 2.0,
    "ce_spliced": 2.3,
    "ce_zero": 6.0,
    "baseline": "zero",
    "ce_uniform": math.log(512),
}


def test_good_figures_need_no_remark() -> None:
    assert remarks(GOOD) == []
    assert not overfitted(GOOD)
    assert not useless(GOOD)


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"fvu": 0.34, "fvu_trimmed": 0.33}, "Overfitted: FVU is 0.34 on held-out documents and 0.22 on training documents"),
        ({"l0": 36.0}, "Overfitted"),
        ({"l0": 36.0, "l0_train": 36.0}, "L0 is 36; training was asked for 16"),
        ({"l0": 5.0, "l0_train": 5.0}, "L0 is 5; training was asked for 16"),
        ({"ce_zero": 7.4}, "worse than a uniform guess (6.24)"),
        ({"ce_spliced": 6.5, "ce_zero": 7.4}, "predicts no better than a uniform guess"),
        ({"ce_spliced": 6.1}, "predicts no better than with zeros at every token"),
        ({"heldout_tokens": 0}, "No document is held out"),
        ({"trained_elsewhere": True}, "trained elsewhere"),
        ({"fvu": 0.01, "fvu_train": 0.01}, "A few tokens of large norm decide FVU"),
    ],
)
def test_figures_that_mislead_are_remarked_upon(worse: dict[str, Any], words: str) -> None:
    assert any(words in remark for remark in remarks(GOOD | worse))


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"ce": 6.4, "ce_spliced": 6.5, "ce_zero": 7.4}, "no better than a uniform guess on this text (6.40 against 6.24"),
        ({"ce": 6.1, "ce_spliced": 6.2}, "no better than with zeros at every token at the site on this text (6.10 against 6.00"),
    ],
)
def test_a_model_that_predicts_badly_by_itself_is_not_blamed_on_the_dictionary(worse: dict[str, Any], words: str) -> None:
    found = remarks(GOOD | worse)
    assert any(remark.startswith("The model itself predicts") and words in remark for remark in found)
    assert not any("With this dictionary" in remark for remark in found)
    assert not useless(GOOD | worse)


def test_a_dictionary_is_compared_with_the_references_that_the_model_beats() -> None:
    worse = GOOD | {"ce": 6.4, "ce_spliced": 7.5, "ce_zero": 7.4}
    assert useless(worse)
    assert any(
        "With this dictionary the model predicts no better than with zeros at every token" in each for each in remarks(worse)
    )


def test_the_figure_in_brackets_is_that_of_the_reference_that_is_named() -> None:
    [remark] = (each for each in remarks(GOOD | {"ce_spliced": 6.5}) if "With this dictionary" in each)
    assert "a uniform guess (6.24 nats" in remark


def test_more_than_all_of_the_cross_entropy_recovered_is_remarked_upon() -> None:
    better = {"ce_spliced": 1.9, "ce_recovered": (6 - 1.9) / (6 - 2)}
    [remark] = remarks(GOOD | better)
    assert (
        remark.startswith("Cross-entropy recovered is 102.50%, above 100 %")
        and "(1.90 nats per token) than without it (2.00)" in remark
    )
    assert remarks(GOOD | {"ce_spliced": 2.0, "ce_recovered": 1.0}) == []


def test_a_baseline_as_bad_as_a_uniform_guess_needs_no_remark() -> None:
    assert remarks(GOOD | {"ce_zero": GOOD["ce_uniform"] + 0.01}) == []


def test_facts_that_are_missing_give_no_remark() -> None:
    old = {"fvu": 0.3, "l0": 16.0, "ce": 2.0, "ce_spliced": 2.3, "ce_zero": 9.0}
    assert remarks(old) == []
    assert remarks({}) == []


def test_a_small_difference_is_not_overfitting() -> None:
    assert not overfitted(GOOD | {"fvu": 0.009, "fvu_train": 0.004})
    assert overfitted(GOOD | {"fvu": 0.34})
    assert overfitted(GOOD | {"l0": 36.0})


def test_a_dictionary_from_elsewhere_has_no_training_documents_here() -> None:
    """Evaluations that earlier versions kept call any document of the store a training document."""
    from saekit.evaluate.dictionary.measures import measures

    facts = GOOD | {"fvu": 0.6, "fvu_trimmed": 0.6, "l0": 64.0, "heldout_tokens": 900}
    assert overfitted(facts) and any("Overfitted" in remark for remark in remarks(facts))
    assert "FVU in training" in [each.measure for each in measures(facts | {"density_tokens": 900})]
    elsewhere = facts | {"trained_elsewhere": True}
    assert not overfitted(elsewhere) and not any("Overfitted" in remark for remark in remarks(elsewhere))
    assert "FVU in training" not in [each.measure for each in measures(elsewhere | {"density_tokens": 900})]
    few = elsewhere | {"heldout_tokens": 0}
    assert not any("trained on" in remark for remark in remarks(few)) and "training" not in measures(few)[0].note
