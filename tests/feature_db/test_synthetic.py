"""The large databases of the benchmark are sound ones."""

from __future__ import annotations

from pathlib import Path

from feature_db import FeatureDB
from scripts.synthetic_database import make


def test_copies_of_written_features_are_features(tmp_path: Path) -> None:
    make(tmp_path, 64, most=32)
    with FeatureDB.open(tmp_path / "features.sqlite") as database:
        assert database.verify() == [] and database.saes()[0].n_features == 64
        for number in (3, 35):
            record = database.feature("resid_post.0", number)
            first = record.words[0].text
            assert number in {hit.feature for hit in database.search(first, 64, by="fires_word")}
        first, copy = (database.feature("resid_post.0", number) for number in (3, 35))
        assert [word.share for word in first.words] == [word.share for word in copy.words]
        assert [word.text for word in first.words] != [word.text for word in copy.words]
