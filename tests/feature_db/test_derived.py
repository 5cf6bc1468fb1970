"""Files of arrays of other processors, other versions of saekit and other embedders."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.arrays import files
from feature_db.meaning.embedders import DEFAULT, EMBEDDERS, WordLlama, embedder, unit
from feature_db.search.arrays import SUFFIXES
from saekit.errors import ConfigError, DatabaseError
from tests.kit.planted import SITE

Index = Callable[..., FeatureDB]


def file_of(database: FeatureDB, suffix: str) -> Path:
    return next(path for path in database.vector_files() if path.name.endswith(suffix))


def rewritten(path: Path, texts: dict[str, str], **arrays: np.ndarray) -> None:
    """Write a file again with other texts and arrays, and the checksum of them."""
    found, before = files.mapped(path)
    kept = {name: text for name, text in (before | texts).items() if name != files.CHECKSUM}
    files.write(path, {name: np.array(array) for name, array in (found | arrays).items()}, kept)


def embedder_of(path: Path) -> str:
    return files.mapped(path)[1]["embedder"]


class _Vowels:
    """An embedder for tests."""

    name, width, by_pieces, version = "vowels", 5, False, "1"

    def embed(self, texts: list[str]) -> np.ndarray:
        return unit(np.array([[text.count(vowel) for vowel in "aeiou"] for text in texts], np.float32).reshape(-1, 5))


@pytest.fixture
def vowels() -> Iterator[None]:
    EMBEDDERS.register("vowels", _Vowels)
    yield
    EMBEDDERS.unregister("vowels")
    embedder.cache_clear()


def test_rounding_of_another_processor_is_no_damage_but_other_vectors_are(index: Index) -> None:
    database = index()
    path = file_of(database, SUFFIXES[1])
    arrays = {name: np.array(array) for name, array in files.mapped(path)[0].items()}
    rounded = {name: rounded_up(arrays[name]) for name in ("vector_VD", "mean_D", "norm_F")}
    rewritten(path, {}, **rounded)
    assert database.verify() == []
    for name, other in (("vector_VD", -arrays["vector_VD"]), ("share_E", rounded_up(arrays["share_E"]))):
        rewritten(path, {}, **(arrays | {name: other}))
        with pytest.raises(DatabaseError, match="differ from the database"):
            database.verify()


def rounded_up(array: np.ndarray) -> np.ndarray:
    return np.nextafter(array, array.dtype.type(2))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_another_version_is_no_damage_and_is_made_again(index: Index, suffix: str) -> None:
    database = index()
    path = file_of(database, suffix)
    kept = path.read_bytes()
    rewritten(path, {"method": "0"})
    assert [("another version of saekit" in remark, "saekit index" in remark) for remark in database.verify()] == [(True, True)]
    with FeatureDB.open(database.path) as again:
        again.search("happy")
    assert path.read_bytes() == kept


def test_an_embedder_of_another_version_is_no_damage(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    database = index()
    path = file_of(database, SUFFIXES[1])
    monkeypatch.setattr(embedder(DEFAULT), "version", "999")
    assert ["version of the embedder" in remark for remark in database.verify()] == [True]
    database.write_words(SITE)
    assert database.verify() == [] and files.mapped(path)[1]["embedder_version"] == "999"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_indexing_repairs_a_flipped_file_and_a_search_names_an_unreadable_one_once(
    index: Index, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = index()
    path = file_of(database, suffix)
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    database.write_words(SITE)
    assert path.read_bytes() == kept
    hits = FeatureDB.open(database.path).search("happy")
    path.write_bytes(kept[:100])
    with caplog.at_level(logging.WARNING), FeatureDB.open(database.path) as again:
        assert again.search("happy") == again.search("happy") == hits
    assert [path.name in record.message for record in caplog.records] == [True]


def test_a_chosen_embedder_is_kept_and_one_that_cannot_be_loaded_is_replaced(
    index: Index, vowels: None, caplog: pytest.LogCaptureFixture
) -> None:
    database = index()
    path, hits = file_of(database, SUFFIXES[1]), database.search("happy")
    database.write_words(SITE, "vowels")
    index()
    assert embedder_of(path) == "vowels", "indexing keeps the embedder"

    def lost() -> WordLlama:
        raise ConfigError("It is lost.", "Look for it.")

    EMBEDDERS.unregister("vowels")
    EMBEDDERS.register("vowels", lost)
    embedder.cache_clear()
    with caplog.at_level(logging.WARNING), FeatureDB.open(database.path) as again:
        assert again.search("happy") == hits
    assert "It is lost." in caplog.text and embedder_of(path) == "vowels", "a search replaces nothing that people chose"
    assert index().verify() == [] and embedder_of(path) == DEFAULT


@pytest.mark.parametrize("error", [OSError("no such model"), ValueError("no model type")])
def test_a_model_that_cannot_be_loaded_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(_: str) -> None:
        raise error

    package = ModuleType("sentence_transformers")
    package.SentenceTransformer = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    monkeypatch.setattr(metadata, "version", lambda _: "5")
    with pytest.raises(ConfigError, match=f"sentence-transformers:nowhere cannot be loaded: {error}"):
        embedder("sentence-transformers:nowhere")
