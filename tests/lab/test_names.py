"""The name "lab" as a model, a corpus and the subject of a study."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest

from saekit import LanguageModel, lab
from saekit.activations import Corpus
from saekit.errors import CorpusError, ModelNotFound
from saekit.workspace.study import portable


def test_the_model(tiny_lab: Path) -> None:
    lm = LanguageModel.load("lab")
    assert lm.name == "lab"
    assert lm.fingerprint()["model"] == LanguageModel.load(tiny_lab).fingerprint()["model"]
    for name in ("lab:facts", "lab@1"):
        with pytest.raises(ModelNotFound, match="lab, lab:skills, lab:induction"):
            LanguageModel.load(name)


def test_the_name_takes_precedence_over_a_folder_and_warns(
    tiny_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        LanguageModel.load("lab")
        assert not caplog.messages
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "a.txt").write_text("a text of mine")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    from saekit import builtin

    builtin.warn_if_shadowing.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert next(Corpus.open("lab").documents()) == next(lab.documents()).text
    assert any("./lab" in message for message in caplog.messages)
    assert portable("lab") == "lab"
    for own in ("./lab", Path("lab")):
        assert list(Corpus.open(own).documents()) == ["a text of mine"]
    assert portable("./lab") == str(tmp_path / "lab")
    for own in ("./lab", Path("lab")):
        with pytest.raises(ModelNotFound, match=r"config\.json"):
            LanguageModel.load(own)


def test_the_corpus() -> None:
    texts = [document.text for document in lab.documents(n=20)]
    assert list(itertools.islice(Corpus.open("lab").documents(), 20)) == texts
    assert list(itertools.islice(Corpus.open("lab").documents(start=15), 5)) == texts[15:]
    genre = sorted(lab.GENRES)[0]
    wanted = [document.text for document in lab.documents(genre, "heldout", 3, n=5)]
    assert list(itertools.islice(Corpus.open(f"lab:{genre}@3", split="heldout").documents(), 5)) == wanted


def test_the_corpus_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saekit.activations.corpus.lab.DOCUMENTS", 7)
    corpus = Corpus.open("lab")
    assert len(list(corpus.documents())) == 7
    assert len(list(corpus.documents(start=5))) == 2
    assert not list(corpus.documents(start=9))


def test_fingerprints_tell_corpora_apart() -> None:
    genre = sorted(lab.GENRES)[0]
    names = ["lab", "lab@1", f"lab:{genre}", f"lab:{genre}@1"]
    found = [Corpus.open(name, split=split).fingerprint() for name in names for split in ("train", "heldout")]
    assert len({tuple(each.items()) for each in found}) == len(found)
    assert Corpus.open("lab").fingerprint() == Corpus.open("lab@0").fingerprint()
    assert Corpus.open("lab").fingerprint()["lab"] == "all genres"


@pytest.mark.parametrize(("name", "split"), [("lab:nothing", "train"), ("lab", "test"), ("lab:", "train"), ("lab@x", "train")])
def test_unknown_names_are_errors(name: str, split: str) -> None:
    with pytest.raises(CorpusError):
        Corpus.open(name, split=split)
