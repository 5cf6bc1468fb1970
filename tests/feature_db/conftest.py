"""A tiny model, a store with known statistics, and databases built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_db import BuildConfig, FeatureDB, build
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, PlantedStore, make_lm, make_sae, make_store


@pytest.fixture(scope="session")
def tiny_lm() -> LanguageModel:
    """Tests must leave it as they found it."""
    return make_lm()


@pytest.fixture(scope="session")
def store(tiny_lm: LanguageModel) -> PlantedStore:
    return make_store(tiny_lm)


@pytest.fixture
def index(tiny_lm: LanguageModel, store: PlantedStore, tmp_path: Path) -> Callable[..., FeatureDB]:
    """`index(path=..., **changes)`: build a database of the planted store."""

    def run(path: Path = tmp_path / "features.sqlite", **changes: Any) -> FeatureDB:
        settings: dict[str, Any] = {
            "store": store,
            "sae": make_sae(),
            "lm": tiny_lm,
            "site": SITE,
            "vectors": path.parent / "vectors",
            "config": BuildConfig(batch_tokens=128),
            "progress": False,
        }
        return build(path, **{**settings, **changes})

    return run


@pytest.fixture
def db(index: Callable[..., FeatureDB]) -> FeatureDB:
    return index()
