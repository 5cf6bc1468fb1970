"""Builds: what they store is what is planted, they do nothing twice, and they change the database in one step or not at all."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feature_db import BuildConfig, FeatureDB, Label, Subject, build_all
from feature_db.index import rows
from feature_db.search.arrays import SUFFIXES
from feature_db.store import connections
from saekit.activations.loader.source import in_split
from saekit.errors import ConfigError, NonFiniteActivations, StorageFull, StoreMismatch
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE, SAEConfig
from tests.kit.contents import contents
from tests.kit.planted import SITE, F, PlantedStore, make_sae, make_store

from .test_accumulators import words_of

Index = Callable[..., FeatureDB]


def test_records_hold_what_was_planted(db: FeatureDB, tiny_lm: LanguageModel, store: PlantedStore) -> None:
    ordinary = ~store.special
    acts = store.acts[ordinary].astype(np.float64)
    occurrences = words_of(tiny_lm, store)
    for f in range(F):
        record = db.feature(SITE, f)
        fired = acts[acts[:, f] > 0, f]
        assert (record.count, record.n_tokens) == (len(fired), len(acts))
        assert record.density == len(fired) / len(acts)
        assert record.density_interval[0] <= record.density <= record.density_interval[1]
        if not len(fired):
            assert (record.kind, record.label, record.examples, record.promoted) == ("dead", "", [], [])
            continue
        assert record.mean == pytest.approx(fired.mean()) and record.std == pytest.approx(fired.std(), abs=1e-6)
        assert record.max == fired.max()
        assert sum(record.histogram.counts) == len(fired)
        assert record.label and record.labels[0].text == record.label
        assert len(record.promoted) == len(record.suppressed) == 50
        for q, value in record.quantiles[5:100:10]:
            low, high = np.quantile(fired, [max(q - 2 / len(fired), 0), min(q + 2 / len(fired), 1)])
            assert low / 1.125 <= value * (1 + 1e-9) and value <= high * 1.125
        stats = db.stats(SITE, f)
        assert stats.max == record.max and stats.mean == pytest.approx(acts[:, f].mean()) and stats.quantiles == record.quantiles
        for example in record.examples:
            rows = slice(example.row - example.peak, example.row - example.peak + len(example.tokens))
            assert example.token_ids == store.tokens[rows].tolist()
            assert example.tokens == tiny_lm.token_strings(example.token_ids)
            values = np.where(ordinary[rows], store.acts[rows, f], 0)
            np.testing.assert_allclose(example.values, values, atol=record.max / 60_000)
            assert [value > 0 for value in example.values] == (values > 0).tolist()
            assert (example.document, example.position) == (store.document[example.row], store.position[example.row])
        for word in record.words:
            rows = [r for text, at in occurrences if text == word.text for r in at]
            if rows and any(c.isalnum() for c in word.text):
                assert word.share == pytest.approx(store.acts[rows, f].sum(dtype=np.float64) / fired.sum())
                assert word.peak == store.acts[rows, f].max()
    happy = db.feature(SITE, 2)
    assert happy.label == "fires on 'happy'" and happy.kind == "word"
    fires = [bool((store.acts[at, 2] > 0).any()) for text, at in occurrences if text == "happy"]
    assert (happy.words[0].text, happy.words[0].share) == ("happy", 1)
    assert happy.words[0].rate == pytest.approx(np.mean(fires), rel=1e-6)
    recall = np.mean(fires)
    scores = {"activation_share": 1, "train_precision": 1, "train_recall": recall, "train_f1": 2 * recall / (1 + recall)}
    assert happy.labels[0].scores == pytest.approx(scores)


def test_a_dictionary_of_both_signs_is_indexed_by_magnitude(index: Index, store: PlantedStore, tmp_path: Path) -> None:
    """AbsTopK: the records are those of a dictionary of the magnitudes, and a query ranks features by magnitude."""
    sign = np.where(np.random.default_rng(1).random(store.acts.shape) < 0.5, -1, 1).astype(np.float32)
    signed = dataclasses.replace(store, acts=store.acts * sign)
    plain = make_sae()
    sae = SAE(SAEConfig("abstopk", d_in=F, n_latents=F, k=F, site_map=SITE), plain.state_dict())
    found, expected = index(tmp_path / "signed" / "features.sqlite", store=signed, sae=sae), index()
    for f in range(F):
        mine, theirs = found.feature(SITE, f).to_dict(), expected.feature(SITE, f).to_dict()
        assert mine == theirs
        assert found.stats(SITE, f) == expected.stats(SITE, f)


def test_records_are_json(db: FeatureDB) -> None:
    import json

    facts = json.loads(json.dumps(db.feature(SITE, 5).to_dict()))
    assert {"ref", "label", "density", "max", "mean", "promoted", "suppressed", "examples"} <= set(facts)
    assert facts["ref"] == f"feature:{SITE}/5"
    assert {"tokens", "values", "token_ids", "document", "position", "bucket"} <= set(facts["examples"][0])
    assert {"token", "value"} <= set(facts["promoted"][0])


def test_vectors_are_decoder_rows(db: FeatureDB) -> None:
    vectors = db.vectors(SITE)
    assert isinstance(vectors, np.memmap)
    np.testing.assert_array_equal(vectors, make_sae().W_dec.detach().numpy())


def test_a_finished_build_is_not_done_again(index: Index, store: PlantedStore) -> None:
    first = index()
    stamp = first.path.stat().st_mtime_ns

    class Unreadable(PlantedStore):
        def stream(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("read again")

    first.close()
    index(store=Unreadable(**vars(store))).close()
    assert first.path.stat().st_mtime_ns == stamp
    assert sorted(p.name for p in first.path.parent.iterdir()) == ["features.sqlite", "features.sqlite.sha256", "vectors"]


def test_two_builds_are_equal_row_for_row(index: Index, tmp_path: Path) -> None:
    one, two = index(tmp_path / "a" / "f.sqlite"), index(tmp_path / "b" / "f.sqlite")
    assert contents(one.path) == contents(two.path)


def test_other_sites_stay(index: Index, tiny_lm: LanguageModel) -> None:
    path = index().path
    before = contents(path)
    other = make_store(tiny_lm, seed=7, documents=15)
    db = index(site=Site("mlp_out", 0), store=other, sae=make_sae(3))
    assert [sae.site for sae in db.saes()] == ["mlp_out.0", "resid_post.0"]
    after = contents(path)
    for table in ("feature", "example", "token_stat", "label", "feature_fts"):
        assert set(before[table]) < set(after[table])
    assert db.saes()[0].n_tokens == int((~other.special).sum()) != db.saes()[1].n_tokens
    assert len(list(path.parent.joinpath("vectors").glob("*.npy"))) == 2


def test_sites_of_one_store_share_its_terms(index: Index) -> None:
    path = index().path
    terms = [row for row in contents(path)["term"] if row[2] == "token"]
    index(site=Site("mlp_out", 0), sae=make_sae(3))
    assert [row for row in contents(path)["term"] if row[2] == "token"] == terms
    assert len(contents(path)["corpus"]) == 1


def test_another_dictionary_takes_the_place_of_the_old(index: Index, tiny_lm: LanguageModel) -> None:
    path = index().path
    other = {"store": make_store(tiny_lm, seed=5, documents=20), "sae": make_sae(9)}
    replaced = index(**other)
    fresh = index(path.parent / "fresh" / "f.sqlite", **other)
    tables = ("feature", "example", "label", "label_score", "feature_fts")
    assert {t: contents(path)[t] for t in tables} == {t: contents(fresh.path)[t] for t in tables}
    assert len(contents(path)["corpus"]) == 1 and len(contents(path)["term"]) == len(contents(fresh.path)["term"])
    replaced.verify()
    files = [file.name for file in (path.parent / "vectors").iterdir()]
    assert [sum(name.endswith(ending) for name in files) for ending in (".npy", *SUFFIXES)] == [1, 1, 1] and len(files) == 3
    np.testing.assert_array_equal(replaced.vectors(SITE), other["sae"].W_dec.detach().numpy())


def test_labels_by_hand_outlive_a_rebuild_of_the_same_dictionary(index: Index, tiny_lm: LanguageModel) -> None:
    db = index()
    db.set_label((SITE, 4), "a stray dog")
    db.add_labels((SITE, 5), [Label("llm", "the park", 10.0, "the park", {"detection": 0.9}, model="m")])
    db.set_list("favourites", [f"feature:{SITE}/5", f"feature:{SITE}/4"])
    db = index(store=make_store(tiny_lm, seed=5, documents=20))
    assert db.feature(SITE, 4).label == "a stray dog"
    assert db.feature(SITE, 5).labels[0].scores == {"detection": 0.9}
    assert [ref.unit for ref in db.lists()["favourites"]] == [5, 4]
    assert db.search("stray")[0].feature == 4


def test_labels_and_lists_return_with_their_dictionary(index: Index) -> None:
    """Another dictionary takes the place of a labelled one, and leaves it again: nothing is lost, and nothing is mixed up."""
    db = index()
    db.set_label((SITE, 4), "a stray dog")
    db.add_labels((SITE, 5), [Label("llm", "the park", 10.0, "the park", {"detection": 0.9}, model="m")])
    db.set_list("favourites", [f"feature:{SITE}/5", f"feature:{SITE}/4"])
    first = db.saes()[0].fingerprint
    db.close()

    other = index(sae=make_sae(9))
    assert other.feature(SITE, 4).label != "a stray dog" and other.lists() == {} and not other.search("stray", by="label")
    assert other.set_aside() == {first: 4}
    other.set_list("favourites", [f"feature:{SITE}/7"])
    other.close()

    again = index()
    assert again.feature(SITE, 4).label == "a stray dog" and again.search("stray")[0].feature == 4
    llm = again.feature(SITE, 5).labels[0]
    assert (llm.text, llm.method, llm.model, llm.scores) == ("the park", "llm", "m", {"detection": 0.9})
    assert [ref.unit for ref in again.lists()["favourites"]] == [5, 4]
    assert again.set_aside() == {make_sae(9).fingerprint(): 1}
    assert again.verify() == []


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_splits_are_by_document(index: Index, store: PlantedStore, split: Any) -> None:
    db = index(split=split, heldout=0.3)
    rows = in_split(store.document, split, 0.3) & ~store.special
    assert 0 < rows.sum() < (~store.special).sum()
    assert db.saes()[0].n_tokens == rows.sum()
    for f in range(1, F):
        record = db.feature(SITE, f)
        assert record.count == (store.acts[rows, f] > 0).sum()
        assert all(rows[example.row] for example in record.examples)


def test_topk_codes_are_padded_without_harm(index: Index, store: PlantedStore, make_sae: Callable[..., SAE]) -> None:
    sae = make_sae("topk", F, 64, k=20, site=SITE)
    db = index(sae=sae)
    dense = sae.encode_dense(torch.from_numpy(store.acts[~store.special]))
    for f in range(64):
        record = db.feature(SITE, f)
        assert record.count == int((dense[:, f] > 0).sum())
        assert record.max == pytest.approx(float(dense[:, f].max()), rel=1e-5)


def test_activations_that_are_not_finite(index: Index, store: PlantedStore, tmp_path: Path) -> None:
    acts = store.acts.copy()
    row = int(np.flatnonzero(~store.special)[500])
    acts[row, 3] = np.nan
    with pytest.raises(NonFiniteActivations, match=f"Row {row} .*document {store.document[row]}, position {store.position[row]}"):
        index(store=PlantedStore(**{**vars(store), "acts": acts}))
    assert not (tmp_path / "features.sqlite").exists()


def test_a_dictionary_of_another_width(index: Index, make_sae: Callable[..., SAE], tmp_path: Path) -> None:
    with pytest.raises(StoreMismatch, match="reads 16 numbers a token; the store has 32"):
        index(sae=make_sae("standard", 16, 8))
    assert not list(tmp_path.iterdir())


def test_a_split_that_does_not_exist(index: Index, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation"):
        index(split="validation")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_database(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    db = index()
    before = contents(db.path)
    writing = connections.writing

    def crowded(path: Path) -> sqlite3.Connection:
        connection = writing(path)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite then says what it says when the disk is full
        return connection

    monkeypatch.setattr(connections, "writing", crowded)
    with pytest.raises(StorageFull):
        index(site=Site("mlp_out", 0))
    monkeypatch.undo()
    assert contents(db.path) == before and db.verify() == []
    assert [sae.site for sae in index(site=Site("mlp_out", 0)).saes()] == ["mlp_out.0", "resid_post.0"]


def test_examples_are_small(index: Index, tiny_lm: LanguageModel) -> None:
    db = index(store=make_store(tiny_lm, documents=200, context=60), config=BuildConfig())
    sizes = [len(row[1]) for row in contents(db.path)["example"]]
    assert max(sizes) < 6000 and 500 < np.mean(sizes) < 3000


def test_partners_fire_on_the_same_tokens(index: Index, store: PlantedStore) -> None:
    acts = store.acts.copy()
    acts[:, 9] = 0.5 * acts[:, 2]
    db = index(store=dataclasses.replace(store, acts=acts, name="partners"))
    ordinary = acts[~store.special].astype(np.float64)
    for f in (2, 9, 20):
        found = db.feature(SITE, f).partners
        for kind, each in [(name, each) for name in ("pmi", "correlation") for each in found[name]]:
            both = int(((ordinary[:, f] > 0) & (ordinary[:, each.feature] > 0)).sum())
            counts = [(ordinary[:, g] > 0).sum() for g in (f, each.feature)]
            assert (each.together, each.missed, each.chance) == (both, 0, pytest.approx(counts[0] * counts[1] / len(ordinary)))
            r = np.corrcoef(ordinary[:, f], ordinary[:, each.feature])[0, 1]
            assert each.value == pytest.approx(np.log2(both / each.chance) if kind == "pmi" else r)
    assert db.feature(SITE, 2).partners["pmi"][0].feature == 9 and db.feature(SITE, 0).partners == {}
    rows = db.sql(f"select partner, together from partners where ref = 'feature:{SITE}/9' and kind = 'pmi' and rank = 0").rows
    assert rows == [(f"feature:{SITE}/2", int((ordinary[:, 2] > 0).sum()))]


def test_one_pass_gives_the_rows_of_single_builds(
    index: Index, store: PlantedStore, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    """Two dictionaries of one site and one of another; the store is read once, and again for nothing."""
    passes = []

    class Counting(PlantedStore):
        def stream(self, sites: Any, **how: Any) -> Any:
            passes.append(sites)
            return super().stream(sites, **how)

    counting = Counting(**vars(store))
    other = Site("mlp_out", 0)
    subjects = [Subject(make_sae(), SITE), Subject(make_sae(1), SITE, "second"), Subject(make_sae(3), other)]
    for each in subjects:
        index(site=each.site, sae=each.sae, name=each.name).close()
    path = tmp_path / "together" / "features.sqlite"
    settings: dict[str, Any] = {"store": counting, "lm": tiny_lm, "vectors": path.parent / "vectors", "progress": False}
    for _ in range(2):
        db = build_all(path, subjects, config=BuildConfig(batch_tokens=128), **settings)
    assert passes == [[other, SITE]] or passes == [[SITE, other]]
    assert contents(path) == contents(tmp_path / "features.sqlite") and db.verify() == []
    with pytest.raises(ConfigError, match="given twice"):
        build_all(path, [subjects[0], subjects[0]], **settings)
    with pytest.raises(ConfigError, match="no dictionary"):
        build_all(path, [], **settings)


def test_rows_are_made_in_this_process(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that index forked would keep the lock of the workspace after index was killed."""

    def fork() -> int:
        raise AssertionError("a process was forked")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(rows, "_CHUNK", 1)
    assert len(index().densities(SITE)) == F

    def broken(*_: object) -> None:
        raise ConfigError("broken")

    monkeypatch.setattr(rows, "labelled", broken)
    with pytest.raises(ConfigError, match="broken"):
        index(tmp_path / "broken" / "f.sqlite")
    assert not (tmp_path / "broken" / "f.sqlite").exists()
