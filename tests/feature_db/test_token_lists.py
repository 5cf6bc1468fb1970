"""Relations of features to tokens and words, packed and in rows of their own."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.store import token_lists
from feature_db.store.schema import ROLES
from saekit.errors import DatabaseError
from tests.kit.contents import contents
from tests.kit.old_databases import as_version_4
from tests.kit.planted import SITE

if TYPE_CHECKING:
    from pathlib import Path

Index = Callable[..., FeatureDB]


def test_packed_entries_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    term, hits = rng.integers(0, 1 << 32, 7), rng.integers(0, 1 << 40, 7)
    value, score, rate, peak = rng.random((4, 7)).astype(np.float32)
    for columns in ((None, None, None), (rate, None, None), (None, None, hits), (rate, peak, hits), (rate, peak, hits % 1000)):
        packed = token_lists.packed(term, value, score, *columns)
        rows = json.loads(token_lists.to_json(packed.entries(2, 5)))
        expected = [each if each is None else each[2:5].tolist() for each in (term, value, score, *columns)]
        assert rows == [list(row) for row in zip(*(each or [None] * 3 for each in expected))]
    assert packed.size == 24 and token_lists.packed(term, value, score, rate, peak, hits).size == 28


def test_a_database_of_version_4_reads_the_same_and_is_extended(index: Index, tmp_path: Path) -> None:
    database = index()
    hits, record, words = database.search("happy"), database.feature(SITE, 2), database.sql("select * from words").rows
    rows, path = contents(database.path), database.path
    database.close()
    as_version_4(path)
    with FeatureDB.open(path) as old:
        assert old.search("happy") == hits and old.feature(SITE, 2) == record and old.verify() == []
        assert sorted(old.sql("select * from words").rows, key=repr) == sorted(words, key=repr)
        old.set_label((SITE, 2), "joy")
        assert old.feature(SITE, 2).label == "joy" and old.feature(SITE, 2).words == record.words
    assert contents(path)["token_stat"] == rows["token_stat"]
    assert index().feature(SITE, 2).label == "joy"
    with sqlite3.connect(index(tmp_path / "new" / "f.sqlite").path) as db:
        found = {role for (role,) in db.execute("SELECT DISTINCT role FROM token_stat")}
    assert found <= {ROLES["causes"]}


@pytest.mark.parametrize("entries", [None, "'text'", "x''", "x'10'", "x'00010203'"])
def test_damaged_entries_are_a_typed_error(index: Index, tmp_path: Path, entries: str | None) -> None:
    path = index(tmp_path / "f.sqlite").path
    role = ROLES["fires_word"]
    with sqlite3.connect(path) as db:
        value = entries or "x'00000000000000807f0000807f'"  # infinite numbers
        db.execute(f"UPDATE token_list SET entries = {value} WHERE role = {role}")
    with FeatureDB.open(path) as damaged:
        for use in (lambda: damaged.feature(SITE, 2), damaged.verify, lambda: damaged.sql("select word from words")):
            with pytest.raises(DatabaseError):
                use()
