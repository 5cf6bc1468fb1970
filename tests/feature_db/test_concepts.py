"""Search by concept on features that each fire on planted words: synonyms, forms, kinds, opposites, classes, other languages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feature_db import BuildConfig, FeatureDB, build
from saekit.activations import Corpus, token_batches
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, F, PlantedStore, inside_word, make_sae

PLANTED = [
    "mother", "car", "truck", "hot", "cold", "houses", "walked", "apple", "violin", "собака", "猫", "avec", '"', "1984", "France",
    "Tom", "quickly", "table", ".", "a",
]  # fmt: skip
"""Feature i fires on the i-th word. Feature 20 fires on vehicles, 21 on fruit, 22 on plural nouns, 23 on past tense, 24 on
articles, 25 on days of the week, 26 on question words."""
TOGETHER = {
    20: "car truck bus", 21: "apple banana grape", 22: "houses dogs cups trees", 23: "walked jumped called ran", 24: "the a",
    25: "Monday Friday", 26: "who why", 27: "?",
}  # fmt: skip
FILLERS = ["the", "a", "of", "bus", "banana", "grape", "dogs", "cups", "trees", "jumped", "called", "ran", "stone", "river"]
FILLERS += ["Monday", "Friday", "who", "why", "?"]


@pytest.fixture(scope="module")
def planted(tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    random = np.random.default_rng(1)
    words = [*PLANTED, *FILLERS]
    documents = ["Then " + " ".join(random.choice(words, 25)) + " ." for _ in range(160)]
    batches = list(token_batches(tiny_lm, Corpus.open(documents), context=64, n_tokens=None, batch_size=8, packing="pack"))
    tokens, position, document = (
        np.concatenate([getattr(batch, name)[batch.mask_BT.bool()].numpy() for batch in batches])
        for name in ("tokens_BT", "position_BT", "document_BT")
    )
    acts = np.zeros((len(tokens), F), np.float32)
    for i, word in enumerate(PLANTED):
        acts[:, i] = inside_word(tiny_lm, tokens, word)
    for i, several in TOGETHER.items():
        acts[:, i] = np.any([inside_word(tiny_lm, tokens, word) for word in several.split()], axis=0)
    special = np.isin(tokens, list(tiny_lm.special_ids))
    store = PlantedStore(tokens.astype(np.int32), position.astype(np.int32), document.astype(np.int64), special, acts, "concepts")
    folder: Path = tmp_path_factory.mktemp("concepts")
    return build(
        folder / "f.sqlite", store=store, sae=make_sae(), lm=tiny_lm, site=SITE, vectors=folder / "vectors", progress=False,
        config=replace(BuildConfig(), batch_tokens=4096),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("query", "feature"),
    [
        ("mom", 0), ("mothers", 0),  # synonyms and forms
        ("house", 5), ("walk", 6), ("walking", 6), ("frozen", 4),
        ("vehicles", 20), ("fruits", 21), ("kinds of fruit", 21),  # kinds
        ("musical instruments", 8), ("European countries", 14), ("pieces of furniture", 17),
        ("hot", 3), ("cold", 4),
        ("собака", 9), ("猫", 10), ("French", 11),  # languages that the embedding does not know, or that the query names
        ("quotation mark", 12), ("years", 13), ("past tense", 23), ("plural nouns", 22), ("adverbs", 16),
        ("quotation marks", 12), ("double quote", 12), ("full stop", 18), ("question mark", 27),  # characters
        ("letters", 19), ("letters of the alphabet", 19), ("numbers", 13), ("French words", 11),
        ("days of the week", 25), ("question words", 26), ("articles", 24), ("definite article", 24),  # closed classes
    ],
)  # fmt: skip
def test_a_concept_is_found_first(planted: FeatureDB, query: str, feature: int) -> None:
    hits = planted.search(query, 3)
    assert hits and hits[0].feature == feature, [(hit.feature, hit.score, hit.why) for hit in hits]


@pytest.mark.parametrize(("query", "opposite"), [("hot", 4), ("cold", 3), ("heat", 4)])
def test_opposites_are_no_hits(planted: FeatureDB, query: str, opposite: int) -> None:
    scores = {hit.feature: hit.score for hit in planted.search(query, F)}
    assert scores.get(opposite, 0.0) < 0.1


@pytest.mark.parametrize(
    ("query", "feature"),
    [
        ("stop", 18), ("full", 18), ("double", 12), ("single", 12), ("love letter", 19), ("newspaper article", 24),
        ("French fries", 11), ("full stop signs ahead of the old bridge", 18),
    ],
)  # fmt: skip
def test_a_part_of_a_name_and_a_name_in_a_longer_query_name_nothing(planted: FeatureDB, query: str, feature: int) -> None:
    scores = {hit.feature: hit.score for hit in planted.search(query, F)}
    assert scores.get(feature, 0.0) < 0.1


def test_a_label_by_a_person_beats_all_statistics(planted: FeatureDB) -> None:
    before = planted.search("vehicles", F)
    assert before[0].feature == 20 and 7 not in [hit.feature for hit in before[:5]]
    planted.set_label((str(SITE), 7), "vehicles")
    try:
        assert planted.search("vehicles", 1)[0].feature == 7
    finally:
        planted.set_label((str(SITE), 7), "")


def test_nonsense_is_not_found(planted: FeatureDB) -> None:
    for query in ("zzyzx", "qwfp gjkl", "%%%", "🙂"):
        assert planted.search(query) == []
