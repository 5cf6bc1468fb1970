"""Triples of the survey's table run on the laboratory, and say which parts they leave open."""

from __future__ import annotations

import pytest

from saekit.errors import ConfigError
from saekit.improve.papers import papers
from saekit.improve.triple import CHANGES, METHODS, OPEN, SPACES, run_triple
from saekit.lm import LanguageModel


def test_every_part_of_the_table_is_known() -> None:
    triples = {paper.triple for paper in papers()}
    assert len(triples) == 61
    for kind, locate, steer in triples:
        assert kind in SPACES and locate in {*METHODS, OPEN} and steer in {*CHANGES, OPEN}


@pytest.mark.parametrize(
    "triple",
    [
        ("MHA", "Causal Attribution", "Amplitude Manipulation"),
        ("MHA", "Circuit Discovery", "Amplitude Manipulation"),
        ("Residual Stream", "-", "Vector Arithmetic"),
        ("Neuron", "Magnitude Analysis", "Targeted Optimization"),
        ("MHA", "Magnitude Analysis", "-"),
    ],
)
def test_a_triple_runs(triple: tuple[str, str, str], lab_lm: LanguageModel) -> None:
    before = lab_lm.fingerprint()
    found = run_triple(lab_lm, triple, quick=True)
    assert lab_lm.fingerprint() == before
    assert found.objects and 0 < found.before < 1
    assert bool(found.method) == (triple[1] != OPEN) and bool(found.change) == (triple[2] != OPEN)
    assert len(found.left_open) == triple.count(OPEN)
    assert (found.after is None) == (triple[2] == OPEN) and (found.kl is None or found.kl > 0)
    assert found.to_dict()["object"] == triple[0]


def test_features_need_a_dictionary_and_parts_are_checked(lab_lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="no features"):
        run_triple(lab_lm, ("SAE Feature", "Magnitude Analysis", "Amplitude Manipulation"), quick=True)
    with pytest.raises(ConfigError, match="no part 'Magic'"):
        run_triple(lab_lm, ("MHA", "Magic", "-"))
