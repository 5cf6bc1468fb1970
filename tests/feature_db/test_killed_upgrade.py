"""A process that is killed while it upgrades a database of an earlier version leaves one that opens, with everybody's labels."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feature_db import FeatureDB
from feature_db.store import connections, schema
from saekit.names.ref import Ref
from tests.kit.crash import killed
from tests.kit.planted import SITE

OLD = Path(__file__).parents[1] / "kit" / "golden" / "databases"
_STEP = 8


@pytest.fixture(scope="module", params=[1, 2, 3])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of an earlier version with a label by hand and a list. Tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(OLD / f"version-{max(request.param, 2)}.zip") as archive:
        archive.extractall(folder)
    if request.param == 1:
        as_version_1_of_2(folder / "features.sqlite")
    return folder


def as_version_1_of_2(path: Path) -> None:
    """Version 1 had no tables for files and for what is set aside."""
    connection = sqlite3.connect(path, isolation_level=None)
    for table in ("file", "set_aside_label", "set_aside_list"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    path.with_name(path.name + ".sha256").unlink()


@contextmanager
def dying_at(statement: int) -> Iterator[None]:
    """Connections that write kill the process before their statement of this number."""
    opened, seen = connections.writing, 0

    def writing(path: Path) -> sqlite3.Connection:
        connection = opened(path)

        def count(sql: str) -> None:
            nonlocal seen
            seen += 1
            if seen == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        connection.set_trace_callback(count)
        return connection

    connections.writing = writing
    try:
        yield
    finally:
        connections.writing = opened


def test_kills_at_every_moment(old: Path, tmp_path: Path) -> None:
    """Each time the database is as before or as after, and the edit that was killed can be made again."""
    path, kills, upgraded = tmp_path / "ws" / "features.sqlite", 0, 0

    def edit() -> None:
        with FeatureDB.open(path) as db:
            db.set_label((SITE, 7), "a cat")

    for statement in range(1, 200, _STEP):
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(old, path.parent)

        def work(number: int = statement) -> None:
            with dying_at(number):
                edit()

        if not killed(work):
            break
        kills += 1
        with FeatureDB.open(path) as db:  # rolls back what the kill left
            assert db.feature(SITE, 4).label == "a stray dog"
            assert db.lists() == {"favourites": [Ref.feature(SITE, 5), Ref.feature(SITE, 4)]}
            assert db.feature(SITE, 7).label != "a cat" or db.feature(SITE, 7).labels[0].method == "human"
            upgraded += db._db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        edit()
        with FeatureDB.open(path) as db:
            assert (db.feature(SITE, 4).label, db.feature(SITE, 7).label) == ("a stray dog", "a cat")
            db.verify()
    assert kills > 4 and 0 < upgraded < kills
