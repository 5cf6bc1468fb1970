"""Columns of all features of a dictionary, against the records of single features."""

from __future__ import annotations

import math

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.search.columns import COLUMNS
from feature_db.search.table import projected
from saekit.errors import ConfigError
from tests.kit.planted import SITE


def test_every_column_is_that_of_the_records(db: FeatureDB) -> None:
    n = db.dictionary(SITE).n_features
    db.set_label((SITE, 1), "by hand")
    records = [db.feature((SITE, number)) for number in range(n)]
    for name in ("density", "count", "mean", "max", "input_score", "output_score", "effect"):
        wanted = [math.nan if (value := getattr(each, name)) is None else value for each in records]
        np.testing.assert_array_equal(db.column(SITE, name), wanted)
    assert db.column(SITE, "number").tolist() == list(range(n))
    assert db.column(SITE, "kind").tolist() == [each.kind for each in records]
    assert db.column(SITE, "label").tolist() == [each.label for each in records] == db.shown_labels(SITE, range(n))
    assert db.column(SITE, "label_source").tolist() == [each.labels[0].method if each.labels else "" for each in records]
    labels = [each.label for each in records]
    assert db.ranks(SITE, "label").tolist() == [sorted(set(labels)).index(label) for label in labels]
    assert {*COLUMNS} >= {"density", "label_source"}
    with pytest.raises(ConfigError, match="column"):
        db.column(SITE, "secret")


def test_a_column_is_read_again_when_the_database_changes(db: FeatureDB) -> None:
    before = db.column(SITE, "label")
    assert db.column(SITE, "label") is before  # read once
    with FeatureDB.open(db.path) as other:  # as another process would
        other.set_label((SITE, 0), "changed")
    assert db.column(SITE, "label")[0] == "changed"
    assert db.column(SITE, "label")[1:].tolist() == before[1:].tolist()


@pytest.mark.parametrize(
    "where",
    [
        "density > 0",
        "count >= 3 and kind = 'word'",
        "label like '%o%'",
        "list = 'mine'",
        "max < 0",
        "not label like '%o%' or count > 5",
    ],
)
def test_matching_features_are_those_of_browsing(db: FeatureDB, where: str) -> None:
    db.add_to_list("mine", [(SITE, 2), (SITE, 0)])
    wanted = [hit.feature for hit in db.browse(k=1000, live=False, where=where)]
    assert db.matching(SITE, where).tolist() == wanted


def test_the_map_has_the_two_widest_directions() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * math.pi, 300)
    flat = np.stack([3 * np.cos(angle), np.sin(angle), 0.01 * rng.standard_normal(300)], axis=1)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    turned, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    vectors = np.concatenate([flat @ turned[:3], np.zeros((1, 8))]).astype(np.float32)
    places, shares = projected(vectors, np.arange(301) < 300)
    assert np.isnan(places[300]).all() and sum(shares) > 0.99 and shares[0] > shares[1]
    # distances between directions of length 1 are kept, up to the third component
    unit = flat / lengths
    distance = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(places[:300, None] - places[None, :300], axis=2), distance, atol=0.1)
