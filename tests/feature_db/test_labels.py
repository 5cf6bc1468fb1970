"""Free labels name what was planted, and their scores are those of brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from feature_db import FeatureDB
from feature_db.labels.rules import LABEL_METHODS
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, F, PlantedStore

from .test_accumulators import words_of

Index = Callable[..., FeatureDB]


@pytest.fixture(scope="module")
def relabelled(store: PlantedStore, tiny_lm: LanguageModel) -> PlantedStore:
    """Features 10 to 16 each fire on one thing only."""
    texts = tiny_lm.token_strings(store.tokens.tolist())
    words = words_of(tiny_lm, store)
    strong = 1 + np.random.default_rng(1).random(store.n_tokens)
    first_rows = [next(i for i in range(b, store.n_tokens) if not store.special[i]) for b in np.flatnonzero(store.position == 0)]
    dogs = {rows[0] - 1 for word, rows in words if word == "dog" and rows[0] > 0 and store.position[rows[0]] > 1}
    numbers = [r for word, rows in words if word.isdigit() for r in rows]
    rules = {
        10: [r for word, rows in words if word in ("happy", "sad") for r in rows],
        11: [i for i, text in enumerate(texts) if text == "s"],
        12: numbers,
        13: [i for i in dogs if not store.special[i]],
        14: first_rows,
        15: [i for i, text in enumerate(texts) if "!" in text or "." in text or "," in text],
    }
    acts = store.acts.copy()
    for f, rows in rules.items():
        acts[:, f] = 0
        acts[rows, f] = strong[rows]
    return PlantedStore(**{**vars(store), "acts": acts.astype(np.float32), "name": "relabelled"})


@pytest.fixture
def labelled(index: Index, relabelled: PlantedStore) -> FeatureDB:
    return index(store=relabelled)


@pytest.mark.parametrize(
    ("feature", "method", "text"),
    [
        (10, "words", "fires on 'happy', 'sad'"),
        (11, "pieces", "fires on the piece 's'"),
        (12, "class", "fires on digits"),
        (13, "before", "fires before 'dog'"),
        (14, "class", "fires on the first token of a context"),
        (15, "class", "fires on punctuation"),
    ],
)
def test_what_is_planted_is_named(labelled: FeatureDB, feature: int, method: str, text: str) -> None:
    labels = {label.method: label.text for label in labelled.feature(SITE, feature).labels}
    said = labels[method]
    assert said == text or (method == "words" and said == "fires on 'sad', 'happy'")


def test_every_live_feature_has_a_label(labelled: FeatureDB) -> None:
    for f in range(F):
        record = labelled.feature(SITE, f)
        assert bool(record.label) == (record.count > 0)
        assert {label.method for label in record.labels} <= set(LABEL_METHODS)
        assert all(label.scores for label in record.labels)


def test_scores_of_a_words_label(labelled: FeatureDB, relabelled: PlantedStore, tiny_lm: LanguageModel) -> None:
    words = words_of(tiny_lm, relabelled)
    checked = 0
    for f in range(1, F):
        for label in labelled.feature(SITE, f).labels:
            if label.method != "words":
                continue
            named = set(label.text.removeprefix("fires on ").strip("'").split("', '"))
            if not all(word.isalnum() for word in named):
                continue
            rows = [at for word, at in words if word in named]
            inside = np.unique(np.concatenate(rows))
            acts = np.where(relabelled.special, 0, relabelled.acts[:, f]).astype(np.float64)
            precision, recall = (acts[inside] > 0).sum() / (acts > 0).sum(), np.mean([(acts[at] > 0).any() for at in rows])
            assert label.scores == pytest.approx(
                {
                    "activation_share": acts[inside].sum() / acts.sum(),
                    "train_precision": precision,
                    "train_recall": recall,
                    "train_f1": 2 * precision * recall / (precision + recall),
                }
            )
            checked += 1
    assert checked > 5


def test_scores_of_a_class_label(labelled: FeatureDB, relabelled: PlantedStore) -> None:
    for f in (12, 14, 15):
        scores = next(label.scores for label in labelled.feature(SITE, f).labels if label.method == "class")
        assert scores["train_precision"] == 1 and 0.9 < scores["train_recall"] <= 1 and scores["lift"] == 1
