"""One database of the planted store for all tests of exchange, with labels by people. Tests must leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_db import BuildConfig, FeatureDB, Label, build
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, PlantedStore, make_sae

HUMAN = {2: 'the word "happy" <b>', 5: "five"}


@pytest.fixture(scope="session")
def indexed(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexed") / "features.sqlite"
    config = BuildConfig(batch_tokens=128)
    vectors = path.parent / "vectors"
    with build(
        path, store=store, sae=make_sae(), lm=tiny_lm, site=SITE, vectors=vectors, config=config, progress=False
    ) as database:
        for number, text in HUMAN.items():
            database.set_label((SITE, number), text)
        database.add_labels((SITE, 7), [Label("oai_token-act-pair", "seven", 50.0, "seven", {}, "gpt-4o-mini")])
        database.set_list("mine", [f"feature:{SITE}/3", f"feature:{SITE}/2"])
    return path


@pytest.fixture
def db(indexed: Path) -> Iterator[FeatureDB]:
    with FeatureDB.open(indexed) as database:
        yield database
