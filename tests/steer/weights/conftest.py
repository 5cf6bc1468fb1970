"""A tiny model, facts about its words, and key statistics of random texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.activations.corpus.base import Corpus
from saekit.lm import LanguageModel
from saekit.steer.weights import Fact, KeyStatistics, Question
from tests.kit.tiny import make_documents, make_lm

# Subjects stand last, where random weights move the prediction most.
FACTS = [
    Fact("w1 w3 w2", "w2", "w9", paraphrases=("w4 w3 w2",), neighbourhood=(Question("w1 w5 w3"), Question("w7 w8"))),
    Fact("w12 w10 w11", "w10 w11", "w13 w14", rephrasings=("w20 w10 w11",), portability=(Question("w10 w3", "w4"),)),
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return make_lm()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.open(make_documents(80))


@pytest.fixture(scope="module")
def statistics(lm: LanguageModel, corpus: Corpus) -> KeyStatistics:
    return KeyStatistics.collect(lm, corpus, [0, 1], n_tokens=1000, progress=False)


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    from saekit.steer.weights import write_facts

    write_facts(FACTS, tmp_path / "facts.jsonl")
    return tmp_path / "facts.jsonl"
