"""Latents of delphi come back with the same statistics, and files that cannot be right are refused or counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from feature_db import FeatureDB
from feature_db.exchange import export, import_features
from saekit.errors import ConfigError, ExchangeError
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, PlantedStore, make_sae

DICTIONARY = f"{SITE}@delphi"


@pytest.fixture(scope="module")
def cached(indexed: Path, store: PlantedStore, tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents as delphi caches them; tests must leave them as they are."""
    out = tmp_path_factory.mktemp("delphi") / "out"
    with FeatureDB.open(indexed) as db:
        export(db, out, "delphi", activations=lambda sae: (store, make_sae(), tiny_lm), progress=False)
    return out


@pytest.fixture
def source(cached: Path, tmp_path: Path) -> Path:
    shutil.copytree(cached, tmp_path / "copy")
    return tmp_path / "copy"


def test_latents_with_explanations_and_scores(db: FeatureDB, source: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    scored = source / "scores" / "detection"
    scored.mkdir(parents=True)
    guesses = ((True, 1.0), (True, 0.0), (False, 0))
    judged = [{"activating": truth, "prediction": guess} for truth, guess in guesses]
    (scored / f"{SITE}_latent5.txt").write_text(json.dumps(judged))
    (source / "explanations" / f"{SITE}_latent999.txt").write_text('"out of range"')
    (source / "explanations" / f"{SITE}_latent6.txt").write_text("no JSON")
    (done,) = import_features(tmp_path / "f.sqlite", source, lm=lambda: tiny_lm, progress=False)
    assert (done.dictionary, done.new, done.features) == (DICTIONARY, True, 32)
    assert done.left_out["explanation that cannot be read"] == 2
    with FeatureDB.open(tmp_path / "f.sqlite") as imported:
        assert imported.verify() == []
        assert imported.saes()[0].n_tokens == db.saes()[0].n_tokens
        for n in range(32):
            one, two = db.feature(SITE, n), imported.feature(DICTIONARY, n)
            assert (two.count, two.density) == (one.count, one.density)
            assert (two.mean, two.std, two.max) == pytest.approx((one.mean, one.std, one.max), rel=2e-3)
            assert [word.text for word in two.words[:1]] == [word.text for word in one.words[:1]]
        label = imported.feature(DICTIONARY, 5)
        assert (label.label, label.labels[0].scores) == ("five", {"detection": 0.75})
        assert imported.search("happy", 1)[0].feature == 2
        assert imported.search("five", 1)[0].feature == 5
        with pytest.raises(ConfigError, match=r"not known.*--by words"):
            imported.like(f"feature:{DICTIONARY}/2")
        top = imported.feature(DICTIONARY, 2).examples[0]
        assert top.values[top.peak] == pytest.approx(imported.feature(DICTIONARY, 2).max, rel=1e-3)


def test_labels_for_an_indexed_dictionary(indexed: Path, source: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    shutil.copytree(indexed.parent, tmp_path / "ws")
    path = tmp_path / "ws" / indexed.name
    (source / "explanations" / f"{SITE}_latent9.txt").write_text('"nine"')
    (done,) = import_features(path, source, lm=lambda: tiny_lm, progress=False)
    assert (done.dictionary, done.new) == (str(SITE), False) and done.labels == 31
    with FeatureDB.open(path) as db:
        assert db.feature(SITE, 9).label == "nine" and db.feature(SITE, 2).label == 'the word "happy" <b>'


def test_entries_that_cannot_be_right_are_counted(source: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    file = source / "latents" / str(SITE) / "0_5.safetensors"
    arrays: dict[str, Any] = load_file(file)
    shuffled = np.random.default_rng(0).permutation(len(arrays["activations"]))
    bad = np.array([[0, 9999, 1], [0, 1, 60], [0, 2, 1]], np.uint16)
    twice = arrays["locations"][:1]
    arrays["locations"] = np.concatenate([arrays["locations"][shuffled], bad, twice])
    arrays["activations"] = np.concatenate([arrays["activations"][shuffled], np.array([1, 1, np.nan, 5], np.float16)])
    save_file(arrays, file)
    (done,) = import_features(tmp_path / "f.sqlite", source, lm=lambda: tiny_lm, progress=False)
    assert done.left_out["activation out of range or not finite"] == 3
    assert done.left_out["second activation of one latent at one token"] == 1


def test_entries_outside_of_the_texts(source: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    """They are counted, and the latents have the statistics that they have without them."""
    file = source / "latents" / str(SITE) / "0_5.safetensors"
    arrays: dict[str, Any] = load_file(file)
    import_features(tmp_path / "clean.sqlite", source, lm=lambda: tiny_lm, progress=False)
    outside = np.array([(0, -1, 1), (0, 1, -1), (-1, 1, 1), (10**6, 1, 1), (0, 1, 6)], np.int64)
    arrays["locations"] = np.concatenate([arrays["locations"].astype(np.int64), outside])
    arrays["activations"] = np.concatenate([arrays["activations"], np.ones(len(outside), np.float16)])
    save_file(arrays, file)
    (done,) = import_features(tmp_path / "f.sqlite", source, lm=lambda: tiny_lm, progress=False)
    assert done.left_out["activation out of range or not finite"] == len(outside)
    with FeatureDB.open(tmp_path / "f.sqlite") as db, FeatureDB.open(tmp_path / "clean.sqlite") as expected:
        for n in range(32):
            assert replace(db.feature(DICTIONARY, n), labels=[]) == replace(expected.feature(DICTIONARY, n), labels=[])  # dates


def test_activations_that_are_too_large_for_sums(source: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    file = source / "latents" / str(SITE) / "0_5.safetensors"
    arrays: dict[str, Any] = load_file(file)
    arrays["activations"] = arrays["activations"].astype(np.float32)
    arrays["activations"][:2] = 3e38
    save_file(arrays, file)
    (done,) = import_features(tmp_path / "f.sqlite", source, lm=lambda: tiny_lm, progress=False)
    assert done.left_out["activation out of range or not finite"] == 2
    with FeatureDB.open(tmp_path / "f.sqlite") as db:
        assert all(np.isfinite([db.feature(DICTIONARY, n).std, db.feature(DICTIONARY, n).max]).all() for n in range(6))


def test_damaged_shards_are_refused(source: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    folder = source / "latents" / str(SITE)
    path = tmp_path / "f.sqlite"

    def refused(match: str) -> None:
        with pytest.raises(ExchangeError, match=match):
            import_features(path, source, lm=lambda: tiny_lm, progress=False)
        assert not path.exists()

    with pytest.raises(ExchangeError, match="model is needed"):
        import_features(path, source, progress=False)
    whole = (folder / "12_18.safetensors").read_bytes()
    (folder / "12_18.safetensors").write_bytes(whole[:-10])
    refused("cannot be read")
    (folder / "12_18.safetensors").unlink()
    refused("overlap or have gaps")
    (folder / "12_18.safetensors").write_bytes(whole)
    arrays: dict[str, Any] = load_file(folder / "0_5.safetensors")
    save_file({**arrays, "tokens": arrays["tokens"] + 10_000}, folder / "0_5.safetensors")
    refused("token ids")
    save_file({**arrays, "activations": arrays["activations"].astype(np.int32)}, folder / "0_5.safetensors")
    refused("cannot be read")
    folder.rename(folder.with_name("transformer.wte"))
    refused("no site")
