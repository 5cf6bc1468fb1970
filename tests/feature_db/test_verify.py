"""`verify` finds a flip of any byte of the database and of the decoder directions; foreign triggers never run."""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.index.streaming import zip_holds_what_it_declares
from feature_db.search.arrays import SUFFIXES
from feature_db.store import schema
from feature_db.store.examples import MAX_BYTES, unpack
from saekit.errors import DatabaseError, SaekitError
from tests.kit.contents import contents
from tests.kit.old_databases import as_version_1
from tests.kit.planted import SITE, F, make_sae, make_store

Index = Callable[..., FeatureDB]


def flipped(path: Path, at: int) -> bytes:
    """Flip one bit of the byte `at`; returns what the file held."""
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
    return data


@pytest.mark.parametrize("labelled", [False, True])
def test_a_flip_of_any_byte_of_the_database_is_found(index: Index, tmp_path: Path, labelled: bool) -> None:
    """The header, free pages and unused space of pages included; also after people have edited labels."""
    db = index()
    if labelled:
        db.set_label((SITE, 4), "a stray dog")
        db.set_list("favourites", [f"feature:{SITE}/5"])
    assert ["has no checksum" in remark for remark in db.verify()] == [True] * labelled, "closing seals what people changed"
    db.close()
    with FeatureDB.open(db.path) as again:
        assert again.verify() == []
    rng, size = random.Random(0), db.path.stat().st_size
    for at in [*range(16, 100, 7), *(rng.randrange(size) for _ in range(25)), size - 1]:
        data = flipped(db.path, at)
        with pytest.raises(DatabaseError), FeatureDB.open(db.path) as broken:
            broken.verify()
        db.path.write_bytes(data)
    checksum = db.path.with_name("features.sqlite.sha256")
    for at in range(len(checksum.read_bytes())):
        data = flipped(checksum, at)
        with pytest.raises(DatabaseError, match="checksum"), FeatureDB.open(db.path) as broken:
            broken.verify()
        checksum.write_bytes(data)
    with FeatureDB.open(db.path) as sound:
        assert sound.verify() == []


def test_a_flip_of_any_byte_of_the_directions_is_found(index: Index) -> None:
    db = index()
    (file,) = (db.path.parent / "vectors").glob("*.npy")
    size = file.stat().st_size
    for at in [*range(128), *(random.Random(1).randrange(size) for _ in range(20)), size - 1]:
        data = flipped(file, at)
        with pytest.raises(DatabaseError, match="decoder directions"):
            db.verify()
        file.write_bytes(data)
    assert db.verify() == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flip_of_any_byte_of_the_arrays_is_found(index: Index, suffix: str) -> None:
    db = index()
    (file,) = (db.path.parent / "vectors").glob(f"*{suffix}")
    size = file.stat().st_size
    for at in [*range(0, 512, 64), *(random.Random(1).randrange(size) for _ in range(8)), size - 1]:
        data = flipped(file, at)
        with pytest.raises(DatabaseError, match="arrays of features"):
            db.verify()
        file.write_bytes(data)
    assert db.verify() == []


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x00\x00", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', "])
def test_headers_of_directions_that_do_not_parse(index: Index, content: bytes) -> None:
    db = index()
    (file,) = (db.path.parent / "vectors").glob("*.npy")
    file.write_bytes(content)
    for act in (db.verify, lambda: db.vectors(SITE)):
        with pytest.raises(DatabaseError, match="decoder directions"):
            act()
    db.close()
    assert index().verify() == [], "indexing again writes them again"


def test_directions_that_declare_more_than_they_hold(index: Index) -> None:
    db = index()
    (file,) = (db.path.parent / "vectors").glob("*.npy")
    for shape, dtype in (((1 << 40, 1 << 20), "<f4"), ((F, F), "<f8"), ((F, F + 1), "<f4"), ((F,), "<f4")):
        with file.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
        with pytest.raises(DatabaseError, match="belongs"):
            db.vectors(SITE)


def test_examples_that_unpack_to_more_than_allowed() -> None:
    bomb = zlib.compress(struct.pack("<BHBf", 1, 1, 2, 1.0) + bytes(MAX_BYTES * 4))
    assert len(bomb) < 1 << 20
    with pytest.raises(DatabaseError, match="more than"):
        unpack(bomb)


def test_a_checkpoint_that_declares_more_than_it_holds_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", a=np.zeros(1000))
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1 << 24))
    assert zip_holds_what_it_declares(tmp_path / "stored.npz")
    assert not zip_holds_what_it_declares(tmp_path / "bomb.npz")


# Foreign databases


def changed(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.executescript(sql)
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TRIGGER t AFTER INSERT ON label BEGIN DELETE FROM label WHERE method = 'human'; END",
        "ALTER TABLE list RENAME TO kept; CREATE VIEW list AS SELECT * FROM kept",
        "CREATE INDEX evil ON feature(abs(count))",
        "ALTER TABLE feature ADD COLUMN evil GENERATED ALWAYS AS (randomblob(1000000000)) VIRTUAL",
        "DROP INDEX label_feature",
    ],
)
def test_a_schema_that_was_changed_is_refused(index: Index, sql: str) -> None:
    db = index()
    db.close()
    changed(db.path, sql)
    for act in (FeatureDB.open, lambda path: index(path)):
        with pytest.raises(DatabaseError, match=r"trigger|changed|unknown"):
            act(db.path)


def test_a_trigger_that_appears_under_an_open_database_does_not_run(db: FeatureDB) -> None:
    db.set_label((SITE, 3), "mine")
    changed(db.path, "CREATE TRIGGER t AFTER INSERT ON label BEGIN DELETE FROM label WHERE method = 'human'; END")
    with pytest.raises(DatabaseError, match="trigger"):
        db.set_label((SITE, 4), "another")
    assert db.feature(SITE, 3).label == "mine"


def test_views_of_other_names_do_no_harm(index: Index) -> None:
    db = index()
    db.close()
    changed(db.path, "CREATE VIEW dense AS SELECT * FROM feature WHERE density > 0.1")
    with FeatureDB.open(db.path) as again:
        assert again.search("happy")


def test_readers_cannot_write_and_trust_no_function(db: FeatureDB) -> None:
    assert db._db.execute("PRAGMA trusted_schema").fetchone() == (0,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        db._db.execute("DELETE FROM label")


# Databases of version 1


def test_a_database_of_version_1_opens_and_is_upgraded_with_its_labels(index: Index) -> None:
    db = index()
    db.set_label((SITE, 4), "a stray dog")
    hits = db.search("happy")
    db.close()
    fresh = contents(db.path)
    as_version_1(db.path)
    with FeatureDB.open(db.path) as old:
        assert old.search("happy") == hits and old.feature(SITE, 4).label == "a stray dog"
        remarks = old.verify()
        assert len(remarks) == 2 and all("index again" in remark and "labels are kept" in remark for remark in remarks)
        old.set_label((SITE, 5), "a cat")
        assert old.set_aside() == {}
    again = index()
    assert again.feature(SITE, 4).label == "a stray dog" and again.feature(SITE, 5).label == "a cat"
    assert again.verify() == [] and again._db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    assert contents(db.path)["token_stat"] == fresh["token_stat"]


def test_damage_in_one_dictionary_is_not_sealed_by_indexing_another(index: Index, tiny_lm: object) -> None:
    """After a flip, each dictionary is made again before the file has a checksum again."""
    index().close()
    other = {"site": "mlp_out.0", "sae": make_sae(3), "store": make_store(tiny_lm, seed=7, documents=15)}  # type: ignore[arg-type]
    db = index(**other)
    db.close()
    with sqlite3.connect(db.path) as connection:  # a change that no structure check can see
        connection.execute("UPDATE feature SET density = 0.5 WHERE number = 3")
    connection.close()
    with FeatureDB.open(db.path) as broken, pytest.raises(SaekitError, match="checksum"):
        broken.verify()
    with index(**other) as one:
        assert one.verify() != []
    with index() as both:
        assert both.verify() == [] and both.feature(SITE, 3).density != 0.5 and both.feature("mlp_out.0", 3).density != 0.5


def test_an_edit_that_was_killed_is_sealed_again(index: Index) -> None:
    db = index()
    db.close()
    db.path.with_name("features.sqlite.sha256").unlink()  # a killed process had begun to write
    with FeatureDB.open(db.path) as unsealed:
        assert "did not end" in unsealed.verify()[0]
    stamp = db.path.stat().st_mtime_ns
    with index() as sealed:
        assert sealed.verify() == [] and db.path.stat().st_mtime_ns == stamp


def test_a_copy_of_the_folder_is_sound(index: Index, tmp_path: Path) -> None:
    db = index(tmp_path / "a" / "features.sqlite")
    db.close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with FeatureDB.open(tmp_path / "b" / "features.sqlite") as copy:
        assert copy.verify() == []
