"""One FeatureDB used by many threads, and files read and written at once."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from feature_db import FeatureDB, FeatureRecord
from saekit.errors import DatabaseError
from saekit.lm import Site
from tests.kit.contents import contents
from tests.kit.planted import SITE, F, make_sae

Index = Callable[..., FeatureDB]


def test_eight_threads_read_and_write(db: FeatureDB) -> None:
    found = [hit.feature for hit in db.search("cat", 20, by="fires_word")]

    def record(feature: int) -> FeatureRecord:
        return replace(db.feature(SITE, feature), partners={})  # they have labels of features that other threads label

    records = [record(f) for f in range(16, F)]

    def work(i: int) -> None:
        for turn in range(6):
            assert db.search("happy", 1)[0].feature == 2
            assert [hit.feature for hit in db.search("cat", 20, by="fires_word")] == found
            assert record(16 + (i + turn) % 16) == records[(i + turn) % 16]
            db.set_label((SITE, 8 + i), f"zebra{i} {turn}")
            assert db.feature(SITE, 8 + i).label == f"zebra{i} {turn}"
            db.set_list(f"list {i}", [f"feature:{SITE}/{i}"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [db.search(f"zebra{i}", 1)[0].feature for i in range(8)] == list(range(8, 16))
    assert len(db.lists()) == 8
    db.close()
    with FeatureDB.open(db.path) as again:
        assert again.verify() == [] and found


def test_connections_end_with_their_threads_and_with_the_database(db: FeatureDB) -> None:
    for _ in range(5):
        thread = threading.Thread(target=db.saes)
        thread.start()
        thread.join()
    gc.collect()
    assert len(db._connections._open) == 1  # this thread's
    db.close()
    db.close()
    for act in (db.saes, lambda: db.search("happy"), lambda: db.feature(SITE, 2)):
        with pytest.raises(DatabaseError, match="was closed"):
            act()


def test_readers_go_on_while_a_build_commits(index: Index, tmp_path: Path) -> None:
    """Readers see the old dictionary or the new one, whole, at any time."""
    index().close()
    path = tmp_path / "features.sqlite"
    index(tmp_path / "fresh" / "f.sqlite", sae=make_sae(9)).close()
    fresh = contents(tmp_path / "fresh" / "f.sqlite")["feature"]
    promoted = {}
    for name, where in (("old", path), ("new", tmp_path / "fresh" / "f.sqlite")):
        with FeatureDB.open(where) as one:
            promoted[name] = [one.feature(SITE, f).promoted for f in range(F)]
    done, seen = threading.Event(), set()

    def read() -> None:
        with FeatureDB.open(path) as db:
            while not done.is_set():
                f = int(time.monotonic() * 1000) % F
                found = db.feature(SITE, f).promoted
                assert found in (promoted["old"][f], promoted["new"][f])
                seen.add(found == promoted["new"][f])

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            index(sae=make_sae(9)).close()
            index(site=Site("mlp_out", 0), sae=make_sae(3)).close()
        finally:
            done.set()
        for reader in readers:
            reader.result()
    assert False in seen
    assert [row for row in contents(path)["feature"] if row[1] == 1] == fresh
    with FeatureDB.open(path) as db:
        assert db.verify() == []
    assert sorted(file.name for file in path.parent.glob("features.sqlite*")) == ["features.sqlite", "features.sqlite.sha256"]
