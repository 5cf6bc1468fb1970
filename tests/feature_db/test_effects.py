"""Measures of indexed features: against brute force in float64, in records, SQL views, conditions and searches."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from feature_db import FeatureDB, build
from feature_db.effects import Measured, TokenRows
from feature_db.effects.direct import measure_direct
from feature_db.effects.logits import histograms, pack, unpack
from feature_db.effects.neighbours import nearest
from feature_db.index.projection import logit_effects
from saekit.errors import ConfigError, DatabaseError
from saekit.lm import LanguageModel
from saekit.names.address import Address
from tests.kit.contents import contents
from tests.kit.planted import SITE, F, PlantedStore, make_sae

ADDRESS = Address.parse(SITE)


@pytest.fixture(scope="module")
def measured(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    """A database with all measures; feature 4 causes the first tokens of " dog" and "犬"."""
    path = tmp_path_factory.mktemp("effects") / "f.sqlite"
    sae = make_sae()
    db = build(path, store=store, sae=sae, lm=tiny_lm, site=SITE, vectors=path.parent / "vectors", progress=False)
    assert sorted(measure_direct(db, ADDRESS, tiny_lm, sae, progress=False)) == ["decoder", "input", "logits"]
    assert measure_direct(db, ADDRESS, tiny_lm, sae, progress=False) == []
    tokens = np.full((F, 2), -1)
    tokens[4] = [tiny_lm.encode(" dog", bos=False)[0][0][0], tiny_lm.encode("犬", bos=False)[0][0][0]]
    tokens[6, 0] = tokens[4, 0]
    values, scores = np.full((F, 2), 1.5), np.full((F, 2), 0.8)
    scores[6] = 0.4
    output = np.where(np.arange(F) == 4, 0.9, 0.1)
    output[0] = np.nan
    rows = TokenRows(tokens, values, np.full((F, 2), 0.25), scores)
    effects = Measured(
        "effects", {"prompts": ["It is"]}, {"output_score": output, "effect": np.arange(F) / 10}, tokens={"causes": rows}
    )
    db.write_measurement(ADDRESS, effects)
    return db


def test_neighbours_equal_all_cosines_in_float64() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 8)).astype(np.float32)
    live = random.random(300) < 0.8
    live[[3, 4]], vectors[4] = True, 0
    found = nearest(vectors, live, top=5)
    units = vectors.astype(np.float64) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    cosine = units @ units.T
    np.fill_diagonal(cosine, -np.inf)
    usable = live & (np.arange(300) != 4)
    cosine[:, ~usable] = -np.inf
    for f in range(300):
        if not usable[f]:
            assert (found.others_FK[f] == -1).all()
            continue
        np.testing.assert_allclose(found.values_FK[f], np.sort(cosine[f])[::-1][:5], atol=1e-5)
        np.testing.assert_allclose(cosine[f, found.others_FK[f]], found.values_FK[f], atol=1e-5)


def test_neighbours_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, live = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32), np.ones(50, bool)
    whole = nearest(vectors, live)
    monkeypatch.setattr("feature_db.effects.neighbours._BLOCK_BYTES", 4 * 50 * 7)
    np.testing.assert_array_equal(nearest(vectors, live).others_FK, whole.others_FK)
    assert (nearest(vectors[:1], live[:1]).others_FK == -1).all() and (nearest(vectors[:3], live[:3]).others_FK >= 0).sum() == 6


def test_similar_directions_that_take_long_are_left_out(
    measured: FeatureDB, tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "f.sqlite"
    copy.write_bytes(measured.path.read_bytes())
    (tmp_path / "vectors").symlink_to(measured.path.parent / "vectors")
    with sqlite3.connect(copy) as plain:
        plain.execute("DELETE FROM measurement WHERE name IN ('decoder', 'logits')")
    monkeypatch.setattr("feature_db.effects.neighbours._BLOCK_BYTES", 4 * F * 5)
    with FeatureDB.open(copy) as db:
        assert measure_direct(db, ADDRESS, tiny_lm, make_sae(), seconds=0.0, progress=False) == ["logits"]
        assert "similar directions" in caplog.text and "--effects" in caplog.text
        assert measure_direct(db, ADDRESS, tiny_lm, make_sae(), progress=False) == ["decoder"]


def test_a_histogram_counts_every_token(tiny_lm: LanguageModel) -> None:
    vectors = torch.randn(5, F, generator=torch.Generator().manual_seed(0))
    (logits,) = logit_effects(tiny_lm, vectors, chunk=9)
    for row, packed in zip(logits.double().numpy(), histograms([logits])):
        found = unpack(packed)
        assert sum(found.counts) == len(row) == 300
        assert (found.edges[0], found.edges[-1]) == pytest.approx((row.min(), row.max()), rel=1e-6)
        expected, _ = np.histogram(row, found.edges)
        assert np.abs(expected - found.counts).sum() <= 2  # a logit on an edge may fall either way


@pytest.mark.parametrize(
    "blob", [b"", b"\x02", b"\x09" + bytes(8), pack(0.0, 1.0, np.arange(9))[:-1], pack(np.nan, 1, np.arange(2))]
)
def test_a_damaged_histogram_says_so(blob: bytes) -> None:
    with pytest.raises(DatabaseError, match="damaged at the logit histogram"):
        unpack(blob)


def test_the_input_score_is_the_share_of_peaks_that_are_promoted(measured: FeatureDB) -> None:
    for number in range(F):
        record = measured.feature(SITE, number)
        promoted = [effect.token_id for effect in record.promoted[:20]]
        peaks = [example.token_ids[example.peak] for example in record.examples if example.bucket == "top"]
        if not peaks:
            assert number == 0 and record.input_score is None
        else:
            assert record.input_score == pytest.approx(sum(peak in promoted for peak in peaks) / len(peaks))


def test_records_hold_what_was_measured(measured: FeatureDB) -> None:
    record = measured.feature(SITE, 4)
    assert (record.output_score, record.effect) == (0.9, 0.4)
    assert [each.token for each in record.caused] == [" do", "\\xe7"] and record.caused[0].probability == 0.25
    dead = measured.feature(SITE, 0)
    assert dead.output_score is None and dead.caused == [] and dead.partners == {} and dead.logit_histogram is None
    units = measured.vectors(SITE) / np.linalg.norm(measured.vectors(SITE), axis=1, keepdims=True)
    for partner in record.partners["decoder"]:
        assert partner.value == pytest.approx(float(units[4] @ units[partner.feature]), abs=1e-5)
        assert partner.label == measured.feature(SITE, partner.feature).label
    assert json.loads(json.dumps(record.to_dict()))["partners"]["decoder"][0]["feature"] == record.partners["decoder"][0].feature


def test_views_hold_them_too(measured: FeatureDB) -> None:
    rows = measured.sql("select number, output_score from features where output_score > .5").rows
    assert rows == [(4, 0.9)]
    record = measured.feature(SITE, 4)
    rows = measured.sql(
        f"select partner, value from partners where ref = 'feature:{SITE}/4' and kind = 'decoder' order by rank"
    ).rows
    assert rows == [(f"feature:{SITE}/{each.feature}", each.value) for each in record.partners["decoder"]]
    assert measured.sql(f"select word from words where role = 'causes' and ref = 'feature:{SITE}/6'").rows == [(" do",)]
    ((histogram,),) = measured.sql("select histogram from logit_histograms where number = 4").rows
    assert record.logit_histogram and json.loads(histogram)["counts"] == record.logit_histogram.counts


def test_conditions_sorting_and_searching(measured: FeatureDB) -> None:
    assert [hit.feature for hit in measured.search("dog", by="causes")] == [4, 6]
    assert "causes ' do'" in measured.search("dog", by="causes")[0].why
    assert [hit.feature for hit in measured.search("dog", by="causes", where="output_score > .5")] == [4]
    assert [hit.feature for hit in measured.search("dog", by="causes", sort="output_score")] == [6, 4]
    assert [hit.feature for hit in measured.search("dog", by="causes", sort="effect desc")] == [6, 4]
    with pytest.raises(ConfigError, match="output_score"):
        measured.search("dog", where="output_scor > 1")


def test_features_are_listed_without_a_query(measured: FeatureDB) -> None:
    hits = measured.browse(3, sort="effect desc")
    assert [hit.feature for hit in hits] == [F - 1, F - 2, F - 3] and hits[0].why == "effect 3.1"
    assert [hit.feature for hit in measured.browse(where="output_score > .5")] == [4]
    assert [hit.feature for hit in measured.browse(3, where="effect < .35", sort="effect", offset=1)] == [2, 3]
    assert len(measured.browse(100)) == F - 1 and len(measured.browse(100, live=False)) == F
    assert measured.browse(100, live=False, sort="output_score")[-1].feature == 0  # what was not measured is last
    assert measured.browse(100, live=False, sort="output_score desc")[-1].feature == 0
    assert measured.browse(1, sort="kind", where="kind = 'dead'", live=False)[0].why == "kind dead"


@pytest.mark.parametrize(
    "damage, place",
    [
        ("UPDATE feature SET logit_histogram = x'0900' WHERE number = 4", "logit histogram"),
        ("UPDATE partner SET other = 9000000000000000000", "partners"),
        ("UPDATE partner SET value = 'high'", "partners"),
        ("UPDATE feature SET output_score = 'high' WHERE number = 4", "feature 4"),
        ("UPDATE measurement SET settings = '{'", "measurements"),
    ],
)
def test_damage_is_named(measured: FeatureDB, tmp_path: Path, damage: str, place: str) -> None:
    copy = tmp_path / "f.sqlite"
    copy.write_bytes(measured.path.read_bytes())
    with sqlite3.connect(copy) as plain:
        plain.execute(damage)
    with FeatureDB.open(copy) as db, pytest.raises(DatabaseError, match=f"damaged at .*{place}"):
        db.feature(SITE, 4)
        db.measurements(ADDRESS)


def test_a_measurement_replaces_the_earlier_one_of_its_name(measured: FeatureDB, tmp_path: Path) -> None:
    copy = tmp_path / "f.sqlite"
    copy.write_bytes(measured.path.read_bytes())
    with FeatureDB.open(copy) as db:
        changed = ("feature", "measurement", "token_stat", "label", "label_score", "feature_fts")  # labels say what is caused
        before = {table: rows for table, rows in contents(copy).items() if table not in changed}
        nothing = TokenRows(np.full((F, 1), -1), np.zeros((F, 1)), np.zeros((F, 1)), np.zeros((F, 1)))
        scores = {"output_score": np.full(F, 0.5), "effect": np.full(F, np.nan)}
        db.write_measurement(ADDRESS, Measured("effects", {"prompts": ["other"]}, scores, tokens={"causes": nothing}))
        assert db.measurements(ADDRESS)["effects"] == {"prompts": ["other"]} and set(db.measurements(ADDRESS)) == {
            "effects", "decoder", "input", "logits",
        }  # fmt: skip
        record = db.feature(SITE, 4)
        assert (record.output_score, record.effect, record.caused) == (0.5, None, []) and record.input_score is not None
        assert {table: rows for table, rows in contents(copy).items() if table in before} == before


def test_indexing_again_forgets_what_was_measured(
    tiny_lm: LanguageModel, store: PlantedStore, measured: FeatureDB, tmp_path: Path
) -> None:
    """The rows are new; a build that is there already keeps them."""
    copy = tmp_path / "f.sqlite"
    copy.write_bytes(measured.path.read_bytes())
    (tmp_path / "vectors").symlink_to(measured.path.parent / "vectors")
    settings = {"store": store, "lm": tiny_lm, "site": SITE, "vectors": tmp_path / "vectors", "progress": False}
    with build(copy, sae=make_sae(), **settings) as db:  # type: ignore[arg-type]
        assert db.measurements(ADDRESS) and db.feature(SITE, 4).output_score == 0.9
    (tmp_path / "vectors").unlink()
    with build(copy, sae=make_sae(5), **settings) as db:  # type: ignore[arg-type]
        assert db.measurements(ADDRESS) == {} and db.feature(SITE, 4).output_score is None
        with sqlite3.connect(copy) as plain:
            assert plain.execute("SELECT COUNT(*) FROM partner WHERE kind = 'decoder'").fetchone() == (0,)
        assert db.verify() == []
