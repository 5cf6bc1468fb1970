"""What is read ahead is what requests use, and it ends with the server."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from feature_db.search import table
from saekit.serve.settings import ServeSettings
from saekit.serve.state import Served
from saekit.serve.warming import Warming, steps
from saekit.views.feature_table import NUMBERS, Asked, feature_table


@pytest.fixture
def served(own_workspace: Path) -> Served:
    return Served([own_workspace], ServeSettings())


def test_requests_find_what_was_read_ahead(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    warming = Warming(served, after=0.0)
    warming.start()
    warming.join(60)
    opened = served.workspaces["study"]
    assert warming.taken == len(list(steps(opened))) > 6
    read: list[str] = []
    plain = table._read
    monkeypatch.setattr(table, "_read", lambda db, sae, name: read.append(name) or plain(db, sae, name))
    for sort in ("output_score", "effect", "label"):
        feature_table(opened.database, Asked(sort=sort, source="words"))
    assert not read
    feature_table(opened.database, Asked(list="none", where="note = 'x'"))
    served.close()


def test_it_ends_before_the_databases_are_closed(served: Served) -> None:
    warming = Warming(served, after=0.0)
    warming.start()
    warming.end()
    served.close()
    assert not warming._thread.is_alive()


def test_a_damaged_database_ends_nothing(own_workspace: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own_workspace, tmp_path / "other"))
    (own_workspace / "features.sqlite").write_bytes(b"no database")
    served = Served([own_workspace, other], ServeSettings())
    warming = Warming(served, after=0.0)
    warming.start()
    warming.join(60)
    assert warming.taken == len(list(steps(served.workspaces["other"])))
    served.close()


def test_values_of_some_features_are_those_of_the_columns(served: Served) -> None:
    database = served.workspaces["study"].database
    numbers = [7, 3, 200]
    found = database.values("resid_post.2", list(NUMBERS), numbers)
    for name in NUMBERS:
        np.testing.assert_array_equal(found[name], database.column("resid_post.2", name)[numbers].astype(np.float64))
    assert all(len(each) == 0 for each in database.values("resid_post.2", ["max"], []).values())
    served.close()
