"""Several dictionaries of one site in one database, and databases from when a site had one."""

from __future__ import annotations

import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.store import schema
from feature_db.store.sql import views
from saekit.errors import ConfigError, DatabaseError, UnknownRef, UnknownSite
from saekit.lm import LanguageModel, Site
from saekit.objects import Ref
from saekit.sae import SAE
from tests.kit.contents import contents
from tests.kit.old_databases import as_version_2
from tests.kit.planted import SITE, F, make_sae

Index = Callable[..., FeatureDB]
OUT = Site("mlp_out", 0)
OLD = Path(__file__).parents[1] / "kit" / "golden" / "databases"


@pytest.fixture
def transcoder(make_sae: Callable[..., SAE]) -> SAE:
    return make_sae("transcoder", F, 40, d_out=F, site=SITE, site_out=OUT)


@pytest.fixture
def three(index: Index, transcoder: SAE) -> FeatureDB:
    """The planted SAE, another one called second, and a transcoder, all of one site."""
    index().close()
    index(sae=make_sae(9), name="second").close()
    return index(sae=transcoder)


def test_each_has_the_rows_that_it_would_have_alone(three: FeatureDB, index: Index, transcoder: SAE, tmp_path: Path) -> None:
    assert [(sae.dictionary, sae.n_features) for sae in three.saes()] == [
        (f"{SITE}->{OUT}", 40),
        (str(SITE), F),
        (f"{SITE}@second", F),
    ]
    alone = {
        str(SITE): index(tmp_path / "a" / "f.sqlite"),
        f"{SITE}@second": index(tmp_path / "b" / "f.sqlite", sae=make_sae(9)),
        f"{SITE}->{OUT}": index(tmp_path / "c" / "f.sqlite", sae=transcoder),
    }
    for address, other in alone.items():
        np.testing.assert_array_equal(three.densities(address), other.densities(SITE))
        np.testing.assert_array_equal(three.vectors(address), other.vectors(SITE))
        for number in (0, 7, F - 1):
            ours, theirs = three.feature((address, number)).to_dict(), other.feature((SITE, number)).to_dict()
            assert (ours.pop("dictionary"), ours.pop("ref")) == (address, f"feature:{address}/{number}")
            assert ours.pop("name") == address.partition("@")[2]
            assert ours == {key: value for key, value in theirs.items() if key not in ("dictionary", "ref", "name")}
    assert three.verify() == []


def test_a_search_covers_all_and_says_of_which_a_hit_is(three: FeatureDB) -> None:
    everywhere = three.search("happy", k=100)
    assert {hit.dictionary for hit in everywhere} == {str(SITE), f"{SITE}@second", f"{SITE}->{OUT}"}
    assert {hit.ref_text for hit in three.search("happy", k=100, site=SITE)} == {hit.ref_text for hit in everywhere}
    for address in (str(SITE), f"{SITE}@second", f"{SITE}->{OUT}"):
        alone = three.search("happy", k=100, dictionary=address)
        assert [hit.to_dict() for hit in alone] == [hit.to_dict() for hit in everywhere if hit.dictionary == address]
        assert {hit.to_dict()["dictionary"] for hit in alone} == {address}
        assert all(three.feature(hit.ref).ref_text == hit.ref_text for hit in alone)
    with pytest.raises(UnknownSite, match=rf"no features of {SITE}@third.*{SITE}@second \(0 to {F - 1}\)"):
        three.search("happy", dictionary=f"{SITE}@third")


def test_one_can_be_replaced_and_the_others_stay(three: FeatureDB, index: Index) -> None:
    three.set_label((SITE, 4), "a stray dog")
    three.set_label((f"{SITE}@second", 4), "another")
    three.set_list("both", [f"feature:{SITE}/4", f"feature:{SITE}@second/5"])
    three.close()

    def listed() -> list[str]:
        return sorted(path.name for path in (three.path.parent / "vectors").iterdir())

    files = listed()
    db = index(sae=make_sae(11), name="second")
    assert db.feature((SITE, 4)).label == "a stray dog" and db.feature((f"{SITE}@second", 4)).label != "another"
    assert db.lists() == {"both": [Ref.parse(f"feature:{SITE}/4")]}
    kept = set(files) & set(listed())
    assert len(listed()) == len(files) and len(kept) == len(files) * 2 // 3  # those of one of the three were replaced
    assert db.verify() == []
    again = index(sae=make_sae(9), name="second")
    assert again.feature((f"{SITE}@second", 4)).label == "another"
    assert again.lists() == {"both": [Ref.parse(f"feature:{SITE}/4"), Ref.parse(f"feature:{SITE}@second/5")]}
    assert listed() == files


def test_a_site_alone_means_the_sae_and_else_the_only_transcoder(index: Index, transcoder: SAE) -> None:
    db = index(sae=transcoder)
    assert db.feature(SITE, 3).ref_text == f"feature:{SITE}/3" and db.saes()[0].dictionary == str(SITE)
    assert db.feature(f"feature:{SITE}->{OUT}/3") == db.feature(SITE, 3)
    with pytest.raises(UnknownRef, match="no features of"):
        db.feature(f"feature:{SITE}->mlp_out.1/3")
    db.close()
    db = index()
    assert db.feature(SITE, 3).density == index().feature(SITE, 3).density
    assert {sae.dictionary for sae in db.saes()} == {str(SITE), f"{SITE}->{OUT}"}


# Databases of earlier versions


def _unpacked(number: int, folder: Path) -> Path:
    with zipfile.ZipFile(OLD / f"version-{number}.zip") as archive:
        archive.extractall(folder)
    return folder / "features.sqlite"


@pytest.fixture(params=[2, 3])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database that an earlier version of the tables is in, with a human label, a model's label and a list."""
    return _unpacked(request.param, tmp_path)


@pytest.fixture
def downgraded(index: Index) -> Path:
    """The same, made now: its fingerprints are those that this machine computes."""
    db = index()
    db.set_label((SITE, 4), "a stray dog")
    db.set_list("favourites", [f"feature:{SITE}/5", f"feature:{SITE}/4"])
    db.close()
    as_version_2(db.path)
    return db.path


def _version(path: Path) -> int:
    connection = sqlite3.connect(path)
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(number)


def _sound(db: FeatureDB) -> bool:
    """Whether nothing is damaged. Files that follow from the rows may be of an earlier version."""
    return all("another version of saekit made it" in remark for remark in db.verify())


def test_an_old_database_is_read_as_it_is(old: Path, index: Index, tmp_path: Path) -> None:
    before, number = old.read_bytes(), _version(old)
    with FeatureDB.open(old) as db:
        assert str(SITE) in [sae.dictionary for sae in db.saes()]
        assert db.feature(SITE, 4).label == "a stray dog"
        assert db.lists() == {"favourites": [Ref.feature(SITE, 5), Ref.feature(SITE, 4)]}
        assert db.search("stray")[0].ref_text == f"feature:{SITE}/4"
        assert db.sql("select label from features where ref = ?".replace("?", f"'feature:{SITE}/4'")).rows == [("a stray dog",)]
        for view in views():
            db.sql(f"select * from {view} limit 2")
        with pytest.raises(ConfigError, match="SQL"):
            db.sql("select * from feature")
        assert _sound(db)
    assert old.read_bytes() == before and _version(old) == number


def test_an_edit_upgrades_an_old_database(old: Path) -> None:
    """What people made stays, and the same open database goes on with the tables of today."""
    with FeatureDB.open(old) as db:
        before = [db.feature(SITE, number) for number in range(F)]
        db.set_label((SITE, 7), "a cat")
        assert [db.feature(SITE, number) for number in range(F) if number != 7] == before[:7] + before[8:]
        assert db.feature(SITE, 7).label == "a cat" and db.lists() == {"favourites": [Ref.feature(SITE, 5), Ref.feature(SITE, 4)]}
        assert db._db.execute("SELECT COUNT(*) FROM temp.sqlite_master WHERE name = 'partner'").fetchone() == (0,)
    with FeatureDB.open(old) as db:
        assert _version(old) == schema.VERSION and db.sealed(SITE)


def test_an_old_database_is_upgraded_by_the_next_build(old: Path, index: Index) -> None:
    """Everything stays."""
    with FeatureDB.open(old) as db:
        features = [db.feature(SITE, number).to_dict() for number in range(F)]
    rows = contents(old)
    index(old, sae=make_sae(9), name="third").close()
    assert _version(old) == schema.VERSION
    after = contents(old)
    for table in ("feature", "label", "label_score"):  # the new columns are the last
        after[table] = [row[: len(rows[table][0])] for row in after[table]]
    for table in ("feature", "example", "token_stat", "label", "label_score", "list", "set_aside_label", "set_aside_list"):
        assert set(rows[table]) <= set(after[table]), table
    with FeatureDB.open(old) as db:
        assert [db.feature(SITE, number).to_dict() for number in range(F)] == features
        assert _sound(db)


def test_an_old_database_of_a_named_dictionary(downgraded: Path, index: Index) -> None:
    """The dictionary that it holds gets a name if it is indexed under one."""
    db = index(name="second")
    assert [sae.dictionary for sae in db.saes()] == [f"{SITE}@second"]
    assert db.feature((f"{SITE}@second", 4)).label == "a stray dog"
    assert db.lists() == {"favourites": [Ref.feature(f"{SITE}@second", 5), Ref.feature(f"{SITE}@second", 4)]}
    assert db.verify() == []


def test_an_old_database_that_holds_the_build_stays_as_it_is(downgraded: Path, index: Index) -> None:
    before = downgraded.read_bytes()
    assert index().feature(SITE, 4).label == "a stray dog"
    assert downgraded.read_bytes() == before and _version(downgraded) == 2


def test_an_upgraded_database_is_a_new_one(old: Path, index: Index, tmp_path: Path, tiny_lm: LanguageModel) -> None:
    """Its tables are those that a new database has."""
    index(old, sae=make_sae(9), name="third").close()
    new = index(tmp_path / "new" / "features.sqlite")

    def tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
        connection = sqlite3.connect(path)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
        found["keys"] = connection.execute("PRAGMA foreign_key_list(feature)").fetchall()
        connection.close()
        return found

    assert tables(old) == tables(new.path)


@pytest.mark.parametrize("number", [schema.VERSION + 1, 99])
def test_a_later_version_says_so(index: Index, number: int, tmp_path: Path) -> None:
    old = _unpacked(3, tmp_path)
    connection = sqlite3.connect(old)
    connection.execute(f"PRAGMA user_version = {number}")
    connection.close()
    before = old.read_bytes()
    for act in (FeatureDB.open, index):
        with pytest.raises(DatabaseError, match=rf"format {number}; this saekit reads up to {schema.VERSION}"):
            act(old)
    assert old.read_bytes() == before


def test_a_killed_upgrade_leaves_the_old_database(old: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(old.parent, old.parent / "copy") / "features.sqlite"

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("feature_db.index.write._write", kill)
    with pytest.raises(Killed):
        index(copy, sae=make_sae(9), name="third")
    monkeypatch.undo()
    with FeatureDB.open(copy) as db:
        assert db.feature(SITE, 4).label == "a stray dog" and "third" not in [sae.name for sae in db.saes()]
    index(copy, sae=make_sae(9), name="third").close()
    with FeatureDB.open(copy) as db:
        assert db.feature(SITE, 4).label == "a stray dog" and "third" in [sae.name for sae in db.saes()] and _sound(db)
