"""Feature databases: what every feature of a dictionary does, in one SQLite file, searchable by concept."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feature_db.accumulators import BuildConfig
    from feature_db.db import FeatureDB
    from feature_db.indexing import build
    from feature_db.labels import Label
    from feature_db.records import FeatureRecord, Hit

__all__ = ["BuildConfig", "FeatureDB", "FeatureRecord", "Hit", "Label", "build"]

_HOMES = {
    "BuildConfig": "accumulators",
    "FeatureDB": "db",
    "FeatureRecord": "records",
    "Hit": "records",
    "Label": "labels",
    "build": "indexing",
}


def __getattr__(name: str) -> Any:
    # Searching needs neither torch nor numba, which building does.
    if name not in _HOMES:
        raise AttributeError(f"module 'feature_db' has no attribute {name!r}")
    return getattr(importlib.import_module(f"feature_db.{_HOMES[name]}"), name)
