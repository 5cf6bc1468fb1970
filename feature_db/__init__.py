"""Feature databases: statistics, examples and labels of all features of a dictionary in one SQLite file, searched by concept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from feature_db.db import FeatureDB
    from feature_db.index.accumulators import BuildConfig
    from feature_db.index.indexing import Subject, build, build_all
    from feature_db.labels.evidence import Label
    from feature_db.records import FeatureRecord, Hit

__all__ = ["BuildConfig", "FeatureDB", "FeatureRecord", "Hit", "Label", "Subject", "build", "build_all"]

# Searching does not load torch and numba; building does.
__getattr__ = attributes(
    __name__,
    {
        "BuildConfig": "feature_db.index.accumulators",
        "FeatureDB": "feature_db.db",
        "FeatureRecord": "feature_db.records",
        "Hit": "feature_db.records",
        "Label": "feature_db.labels.evidence",
        "Subject": "feature_db.index.indexing",
        "build": "feature_db.index.indexing",
        "build_all": "feature_db.index.indexing",
    },
)
