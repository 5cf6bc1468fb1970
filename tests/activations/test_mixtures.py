"""Mixtures of corpora: exact shares, the same order every time, and stores that resume to the same bytes."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.activations import Corpus, write_store
from saekit.activations.corpus.mixture import MixtureCorpus, read_sources, turns_of
from saekit.errors import ConfigError, CorpusError, StoreMismatch
from saekit.lm import LanguageModel
from tests.activations.conftest import files_of

WEIGHTS = st.lists(st.integers(1, 50), min_size=1, max_size=6).map(lambda parts: [Fraction(part, sum(parts)) for part in parts])


@given(WEIGHTS)
def test_every_beginning_has_the_shares(weights: list[Fraction]) -> None:
    counts = [0] * len(weights)
    for n, turn in enumerate(itertools.islice(turns_of(weights), 400), start=1):
        counts[turn] += 1
        for count, weight in zip(counts, weights):
            assert n * weight - 1 < count < n * weight + 1


def _files(folder: Path) -> tuple[str, str]:
    for name, n in (("a", 60), ("b", 400)):
        rows = ({"text": "" if i % 5 == 4 else f"w{i % 50} " * (1 + i % 4), "n": i} for i in range(n))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "a.jsonl"), str(folder / "b.jsonl")


def test_documents_come_in_turn_and_none_twice(tmp_path: Path) -> None:
    a, b = _files(tmp_path)
    own = {name: [text for text in Corpus.open(name).documents() if text] for name in (a, b)}
    corpus = Corpus.open({a: 0.25, b: 0.75})
    whole = list(corpus.documents())
    turns = list(itertools.islice(turns_of([Fraction(1, 4), Fraction(3, 4)]), len(whole)))
    taken = {a: iter(own[a]), b: iter(own[b])}
    assert whole == [next(taken[(a, b)[turn]]) for turn in turns]
    assert turns.count(0) == len(own[a]) and turns.count(1) == len(whole) - len(own[a])  # it ends where `a` ends
    for start in (0, 1, 7, len(whole), len(whole) + 5):
        assert list(corpus.documents(start)) == whole[start:]
    mixed = list(Corpus.open({a: 0.25, b: 0.75}, shuffle=3, where="n != 0").documents())
    assert mixed == list(Corpus.open({a: 0.25, b: 0.75}, shuffle=3, where="n != 0").documents()) != whole
    assert len(Corpus.open({a: 0.5, b: 0.5}).fingerprint()) > 4


def test_a_store_of_a_mixture_resumes_to_the_same_bytes(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    a, b = _files(tmp_path)
    asked = {"context": 16, "batch_size": 2, "shard_tokens": 64, "progress": False}
    for shuffle in (None, 1):
        folder = tmp_path / str(shuffle)
        corpus = Corpus.open({a: 0.4, b: 0.6}, shuffle=shuffle)
        write_store(folder, tiny_lm, ["embed"], corpus, **asked)
        whole = files_of(folder)
        assert len(whole) > 4
        (folder / "shard-00001.h5").unlink()
        (folder / "shard-00003.h5").unlink()
        write_store(folder, tiny_lm, ["embed"], Corpus.open({a: 0.4, b: 0.6}, shuffle=shuffle), **asked)
        assert files_of(folder) == whole
        with pytest.raises(StoreMismatch, match=r"corpus.0.weight is '2/5', asked was '1/2'"):
            write_store(folder, tiny_lm, ["embed"], Corpus.open({a: 0.5, b: 0.5}, shuffle=shuffle), **asked)


def test_sources_and_weights_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_sources(["A:0.7", "lab:facts@3:.3"]) == {"A": Fraction(7, 10), "lab:facts@3": Fraction(3, 10)}
    assert read_sources(["lab:facts", "B", "C"]) == dict.fromkeys(["lab:facts", "B", "C"], Fraction(1, 3))
    assert read_sources(["A:1/3", "B:2/3"])["B"] == Fraction(2, 3)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x:0.5").write_text("")
    assert read_sources(["x:0.5", "B"]) == {"x:0.5": Fraction(1, 2), "B": Fraction(1, 2)}
    for data, message in [
        (["A:0.7", "B:0.7"], r"weights of the mixture sum to 1.4, not to 1"),
        (["A:0.7", "B"], r"'B' has no weight"),
        (["A:1.5", "B:-0.5"], r"A weight of the mixture is -1/2; it must be above 0"),
        (["A:1", "B:0"], r"A weight of the mixture is 0;"),
        (["A:0.5", "A:0.5"], r"'A' is named twice"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_sources(data)
    with pytest.raises(ConfigError, match=r"weights of the mixture are nan, 1"):
        Corpus.open({"lab": float("nan"), "lab:facts": 1})
    with pytest.raises(CorpusError, match="no file or folder"):
        Corpus.open({"./nowhere": 0.5, "lab": 0.5})
    with pytest.raises(CorpusError, match="A dict is no corpus"):
        Corpus.open({"text": ["a"]})  # type: ignore[dict-item]


def test_an_empty_part_is_named(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    a, _ = _files(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    corpus = Corpus.open({a: 0.5, str(tmp_path / "empty.jsonl"): 0.5})
    with pytest.raises(CorpusError, match=r"empty.jsonl holds no text"):
        write_store(tmp_path / "s", tiny_lm, ["embed"], corpus, context=8, progress=False)
    assert isinstance(corpus, MixtureCorpus)
