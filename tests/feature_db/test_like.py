"""Features like a feature: against cosines in float64, within and across dictionaries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feature_db import FeatureDB, build
from saekit.errors import ConfigError, UnknownRef, UnknownSite
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, PlantedStore, inside_word, make_sae


@pytest.fixture(scope="module")
def searched(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    """Two dictionaries. In the first, feature 9 fires on "happily" and feature 2 on "happy"."""
    path = tmp_path_factory.mktemp("like") / "f.sqlite"
    acts = store.acts.copy()
    acts[:, 9] = 2 * inside_word(tiny_lm, store.tokens, "happily")
    planted = replace(store, acts=acts, name="like")
    settings = {"store": planted, "lm": tiny_lm, "site": SITE, "vectors": path.parent / "vectors", "progress": False}
    build(path, sae=make_sae(), **settings).close()
    return build(path, sae=make_sae(1), name="other", **settings)


def test_decoder_cosines_of_all_dictionaries(searched: FeatureDB) -> None:
    hits = searched.like((SITE, 4), 99)
    expected = {}
    for address in (str(SITE), f"{SITE}@other"):
        directions = np.asarray(searched.vectors(address), np.float64)
        query = np.asarray(searched.vectors(SITE)[4], np.float64)
        cosine = directions @ query / np.linalg.norm(directions, axis=1) / np.linalg.norm(query)
        dead = searched.densities(address) == 0
        expected |= {(address, f): c for f, c in enumerate(cosine) if c > 0 and not dead[f] and (address, f) != (str(SITE), 4)}
    assert {(hit.dictionary, hit.feature) for hit in hits} == set(expected)
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)
    assert all(hit.score == pytest.approx(expected[hit.dictionary, hit.feature], abs=1e-5) for hit in hits)
    assert hits[0].why == f"decoder cosine {hits[0].score:.3f}"
    only = searched.like((SITE, 4), 99, dictionary=f"{SITE}@other")
    assert only == [hit for hit in hits if hit.name == "other"]
    assert searched.like((SITE, 4), 2, offset=1, where="density < .1") == [hit for hit in hits if hit.density < 0.1][1:3]


def test_words_near_in_meaning(searched: FeatureDB) -> None:
    hits = searched.like((SITE, 2), 3, by="words")
    assert {(hit.dictionary, hit.feature) for hit in hits[:1]} == {(f"{SITE}@other", 2)}
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert (SITE, 9) in {(hit.ref.site, hit.feature) for hit in hits}
    assert "near in meaning" in hits[0].why


def test_features_that_fire_on_the_same_tokens(searched: FeatureDB, store: PlantedStore) -> None:
    """Against correlations in float64. Feature 9 fires on a part of the tokens on which feature 2 fires."""
    partners = searched.feature(SITE, 9).partners["correlation"]
    hits = searched.like((SITE, 9), 99, by="coactivation")
    assert {hit.feature: hit.score for hit in hits} == pytest.approx({each.feature: each.value for each in partners}, abs=1e-6)
    assert {hit.dictionary for hit in hits} == {str(SITE)} and "by chance on" in hits[0].why
    assert searched.like((SITE, 9), 99, by="coactivation", dictionary=f"{SITE}@other") == []
    assert searched.like((SITE, 9), 1, by="coactivation", where="density < .02") == [h for h in hits if h.density < 0.02][:1]
    with pytest.raises(ConfigError, match="no partners"):
        searched.like((SITE, 0), by="coactivation")


def test_mistakes_are_named(searched: FeatureDB, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no likeness 'word'.*words"):
        searched.like((SITE, 2), by="word")
    with pytest.raises(UnknownRef):
        searched.like((SITE, 99))
    with pytest.raises(UnknownSite):
        searched.like((SITE, 2), dictionary="resid_post.7")
    with pytest.raises(ConfigError, match="no word"):
        searched.like((SITE, 0), by="words")
