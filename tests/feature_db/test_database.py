"""Databases that are missing, damaged, foreign or newer; references out of range; labels and lists."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_db import FeatureDB, Label
from saekit.errors import DatabaseError, SaekitError, UnknownRef, UnknownSite
from saekit.lm import Site
from saekit.objects import Ref
from tests.kit.planted import SITE, F

Index = Callable[..., FeatureDB]


def test_references_out_of_range(db: FeatureDB) -> None:
    with pytest.raises(UnknownRef, match=f"no feature:{SITE}/{F}.*{F} features.*0 to {F - 1}"):
        db.feature(SITE, F)
    with pytest.raises(UnknownRef, match=rf"no features of resid_post.1.*{SITE} \(0 to {F - 1}\)"):
        db.feature("feature:resid_post.1/3")
    with pytest.raises(UnknownRef, match="no feature"):
        db.feature("neuron:0/3")
    with pytest.raises(UnknownRef):
        db.feature("feature:nowhere/3")
    with pytest.raises(UnknownRef, match="negative"):
        db.feature(SITE, -1)
    for act in (lambda ref: db.set_label(ref, "x"), lambda ref: db.add_labels(ref, [Label("m", "x")]), db.stats):
        with pytest.raises(UnknownRef):
            act((SITE, F))
    with pytest.raises(UnknownSite, match=str(SITE)):
        db.search("happy", site="resid_post.1")
    with pytest.raises(UnknownSite):
        db.vectors("resid_post.1")


def test_a_feature_by_any_of_its_names(db: FeatureDB) -> None:
    record = db.feature(SITE, 7)
    for name in (record.ref, str(record.ref), (SITE, 7), (str(SITE), 7), Ref.feature(SITE.hook_name, 7)):
        assert db.feature(name) == record


def test_no_database(tmp_path: Path) -> None:
    for path in (tmp_path / "none.sqlite", tmp_path):
        with pytest.raises(DatabaseError, match="no feature database"):
            FeatureDB.open(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to have a header" * 100])
def test_not_a_database(tmp_path: Path, content: bytes, index: Index) -> None:
    path = tmp_path / "features.sqlite"
    path.write_bytes(content)
    for act in (FeatureDB.open, index):
        with pytest.raises(DatabaseError):
            act(path)
        assert path.read_bytes() == content


def test_somebody_elses_database(tmp_path: Path, index: Index) -> None:
    path = tmp_path / "features.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE feature (id)")
    connection.close()
    for act in (FeatureDB.open, index):
        with pytest.raises(DatabaseError, match="not a feature database"):
            act(path)


def test_a_newer_database(db: FeatureDB, index: Index) -> None:
    db.close()
    with sqlite3.connect(db.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = db.path.read_bytes()
    for act in (FeatureDB.open, index):
        with pytest.raises(DatabaseError, match=r"format 99.*Upgrade"):
            act(db.path)
    assert db.path.read_bytes() == before


def test_damage_is_always_a_typed_error(index: Index, tmp_path: Path) -> None:
    """Bytes flipped or cut anywhere: verify() finds it or nothing is wrong; nothing else than a typed error comes out."""
    good = index()
    good.verify()
    good.close()
    data = good.path.read_bytes()
    found = 0
    for trial in range(40):
        rng = random.Random(trial)
        broken = bytearray(data)
        if trial % 4 == 0:
            broken = broken[: rng.randrange(len(data))]
        else:
            for _ in range(rng.choice([1, 20, 400])):
                broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"broken-{trial}" / "features.sqlite"
        path.parent.mkdir()
        shutil.copytree(good.path.parent / "vectors", path.parent / "vectors")
        path.write_bytes(broken)
        try:
            with FeatureDB.open(path) as db:
                for f in range(0, F, 5):
                    db.feature(SITE, f)
                db.search("happy dog")
                db.verify()
        except SaekitError:
            found += 1
    assert found >= 25


def test_verify_finds_missing_parts(index: Index, tmp_path: Path) -> None:
    db = index()
    db.vectors(SITE)
    with db._edits.transaction() as connection:
        connection.execute("DELETE FROM example WHERE feature = (SELECT MAX(id) FROM feature)")
    with pytest.raises(DatabaseError, match="examples"):
        db.verify()
    db = index(tmp_path / "other" / "f.sqlite")
    for file in (db.path.parent / "vectors").iterdir():
        file.unlink()
    for act in (db.verify, lambda: db.vectors(SITE)):
        with pytest.raises(DatabaseError, match="decoder directions"):
            act()


def test_missing_vectors_are_written_again(index: Index) -> None:
    db = index()
    for file in (db.path.parent / "vectors").iterdir():
        file.unlink()
    index().verify()


def test_human_labels_win_and_can_be_taken_back(db: FeatureDB) -> None:
    automatic = db.feature(SITE, 9).label
    db.add_labels((SITE, 9), [Label("llm", "a model's idea", 10.0, "a model's idea", {"detection": 0.8}, model="m1")])
    assert db.feature(SITE, 9).label == "a model's idea"
    db.set_label((SITE, 9), "  royal gardens ")
    record = db.feature(SITE, 9)
    assert [label.method for label in record.labels[:2]] == ["human", "llm"] and record.label == "royal gardens"
    hit = db.search("garden")[0]
    assert (hit.feature, hit.label) == (9, "royal gardens") and "label" in hit.why
    db.set_label((SITE, 9), "castles")
    assert not db.search("garden", by="label") and db.search("castle")[0].feature == 9
    db.add_labels((SITE, 9), [Label("llm", "another", 10.0, "another", model="m1")])
    assert [label.text for label in db.feature(SITE, 9).labels if label.method == "llm"] == ["another"]
    db.set_label((SITE, 9), "")
    db.add_labels((SITE, 9), [])
    assert db.feature(SITE, 9).labels[0].text == "another"
    assert automatic in [label.text for label in db.feature(SITE, 9).labels]
    db.verify()


def test_labels_are_seen_by_other_readers(db: FeatureDB) -> None:
    other = FeatureDB.open(db.path)
    db.set_label((SITE, 9), "royal gardens")
    assert other.feature(SITE, 9).label == "royal gardens"


def test_lists(db: FeatureDB) -> None:
    db.set_list("animals", [Ref.feature(SITE, 3), f"feature:{SITE}/1"])
    db.set_list("others", [])
    assert db.lists() == {"animals": [Ref.feature(SITE, 3), Ref.feature(SITE, 1)]}
    with pytest.raises(UnknownRef):
        db.set_list("animals", [Ref.feature(SITE, F)])
    assert len(db.lists()["animals"]) == 2
    db.set_list("animals", [])
    assert db.lists() == {}


def test_what_is_in_it(db: FeatureDB) -> None:
    (sae,) = db.saes()
    assert (sae.site, sae.n_features, sae.live, sae.architecture) == (str(SITE), F, F - 1, "standard")
    assert "32 features of resid_post.0" in repr(db)
    assert Site.parse(sae.site) == SITE
