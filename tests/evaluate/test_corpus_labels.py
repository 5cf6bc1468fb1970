"""Statistics of features for the labels of a corpus: against scikit-learn and against the activations written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from feature_db import FeatureDB
from feature_db.effects import Measured
from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.fields import Fields
from saekit.activations.corpus.labels import FIELDS, corpus_labels
from saekit.evaluate.concepts.corpus_labels import LabelStats, label_stats
from saekit.lm import LanguageModel
from saekit.names.address import Address
from saekit.names.site import Site
from saekit.tasks import Labelled
from saekit.workspace.effects import _best_of

SITE = Site("resid_post", 2)
TEXTS = (
    "Once upon a time there was a dog.",
    "The cat sat in the sun.",
    "Tom and Lily ran to the park.",
    "It was a big, red ball.",
)
MANY = Labelled(tuple(f"{text} {i}" for i in range(8) for text in TEXTS), ("dog", "cat", "dog", "ball") * 8)


def _activations(lm: LanguageModel, text: str) -> np.ndarray:
    tokens = lm.encode([text])[0]
    acts = lm.run(tokens, read=[SITE])[SITE][0]
    return lm.dictionaries[SITE].encode_dense(acts[lm.ordinary(tokens[0])]).detach().double().numpy()


@torch.no_grad()
def test_labels_of_documents(lm_with_saes: LanguageModel) -> None:
    lm = lm_with_saes
    stats = label_stats(lm, lm.dictionaries[SITE], SITE, MANY, progress=False)
    assert (stats.level, stats.names, stats.total) == ("document", ("ball", "cat", "dog"), 32)
    assert stats.positives_C.tolist() == [8, 8, 16]
    largest_DF = np.stack([_activations(lm, text).max(0) for text in MANY.texts])
    _check(stats, largest_DF, np.array(MANY.labels), np.arange(32))


@torch.no_grad()
def test_labels_of_spans(lm_with_saes: LanguageModel) -> None:
    """A token has the label of the span that it shares a character with."""
    lm = lm_with_saes
    spans = tuple(
        tuple((text.index(word), text.index(word) + len(word), word) for word in ("dog", "cat", "ball") if word in text)
        for text in MANY.texts
    )
    stats = label_stats(lm, lm.dictionaries[SITE], SITE, Labelled(MANY.texts, spans=spans), progress=False)  # type: ignore[arg-type]
    rows, labels, documents = [], [], []
    for d, (text, each) in enumerate(zip(MANY.texts, spans)):
        encoded = lm.text.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        keep = lm.ordinary(lm.encode([text])[0][0])[1:].tolist()  # without BOS
        rows.append(_activations(lm, text))
        for (start, end), kept in zip(encoded["offset_mapping"], keep):
            solid = [i for i in range(start, end) if not text[i].isspace()]
            if kept:
                labels.append(next((word for s, e, word in each if any(s <= i < e for i in solid)), ""))
                documents.append(d)
    assert stats.level == "span" and stats.total == len(labels)
    _check(stats, np.concatenate(rows), np.array(labels), np.array(documents))


def _check(stats: LabelStats, acts_NF: np.ndarray, label_N: np.ndarray, document_N: np.ndarray) -> None:
    odd = document_N % 2 == 1
    for f in (0, 3, 50, 199):
        for c, name in enumerate(stats.names):
            has = label_N == name
            assert stats.auc_FC[f, c] == pytest.approx(roc_auc_score(has, acts_NF[:, f]), abs=2e-3)
            difference = acts_NF[has, f].mean() - acts_NF[~has, f].mean()
            assert stats.difference_FC[f, c] == pytest.approx(difference, abs=1e-4)
            threshold = stats.threshold_FC[f, c]
            on = acts_NF[odd, f] >= threshold - 1e-6
            for measured, measure in (
                (stats.f1_FC, f1_score),
                (stats.precision_FC, precision_score),
                (stats.recall_FC, recall_score),
            ):
                assert measured[f, c] == pytest.approx(measure(has[odd], on, zero_division=0), abs=0.02)
            tried = [t for t in np.unique(acts_NF[~odd, f]) if t > 0]
            best = max((f1_score(has[~odd], acts_NF[~odd, f] >= t, zero_division=0) for t in tried), default=0)
            if np.isfinite(threshold):
                assert f1_score(has[~odd], acts_NF[~odd, f] >= threshold - 1e-6) == pytest.approx(best, abs=0.02)
            else:
                assert best == 0


def _corpus(path: Path, rows: list[object]) -> Corpus:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return Corpus.open(path, text_field=Fields(also=FIELDS))


def test_labels_are_read_where_rows_have_them(tmp_path: Path) -> None:
    rows = [
        {"text": "a b", "label": 1},
        {"text": "c"},
        {"text": "", "label": 2},
        {"text": "d", "label": "x"},
        {"text": "e", "label": 1},
    ]
    assert corpus_labels(_corpus(tmp_path / "a.jsonl", rows), 2) == Labelled(("a b", "d"), ("1", "x"))
    spans = [
        {"text": "red ball", "spans": [[0, 3, "colour"], [5, 99, "too long"], "no span"]},
        {"text": "x", "label": "left out"},
    ]
    found = corpus_labels(_corpus(tmp_path / "b.jsonl", spans), 9)
    assert found is not None and found.spans == (((0, 3, "colour"),),) and found.texts == ("red ball",)
    assert corpus_labels(_corpus(tmp_path / "c.jsonl", [{"text": "a"}] * 30 + [{"text": "b", "label": "late"}]), 9) is None
    assert corpus_labels(Corpus.open(["plain", "texts"]), 9) is None


def test_the_best_features_of_each_label_are_kept() -> None:
    f1_FC, auc_FC = np.random.default_rng(0).random((2, 300, 3))
    threshold_FC = np.where(f1_FC > 0.1, 1.0, np.inf)
    stats = LabelStats(
        "document", ("a", "b", "rare"), np.array([40, 60, 3]), 100, auc_FC, f1_FC, f1_FC, f1_FC, threshold_FC, f1_FC
    )
    kept = _best_of(stats)
    assert list(kept.names) == ["b", "a"] and kept.positives_C == [60, 40]
    for i, label in enumerate((1, 0)):
        mine = set(kept.features_M[kept.labels_M == i].tolist())
        assert set(np.argsort(-f1_FC[:, label])[:50].tolist()) <= mine and len(mine) <= 60
        assert {int(np.nanargmax(np.where(np.isfinite(threshold_FC[:, label]), auc_FC[:, label], -1)))} <= mine


def test_they_are_shown_and_searched(tmp_path: Path) -> None:
    from feature_db import build
    from tests.kit.planted import SITE as PLANTED
    from tests.kit.planted import F, make_lm, make_sae, make_store

    lm = make_lm()
    settings = {"store": make_store(lm), "sae": make_sae(), "lm": lm, "site": PLANTED, "vectors": tmp_path, "progress": False}
    with build(tmp_path / "f.sqlite", **settings) as db:  # type: ignore[arg-type]
        f1_FC = np.zeros((F, 2))
        f1_FC[5], f1_FC[7, 0] = (0.25, 0.5), 0.75
        threshold_FC = np.where(f1_FC > 0, 2.0, np.inf)
        names = ("sports_news", "science")
        stats = LabelStats("document", names, np.array([20, 30]), 50, f1_FC, f1_FC, f1_FC, f1_FC, threshold_FC, f1_FC)
        db.write_measurement(Address.parse(PLANTED), Measured("corpus_labels", {"texts": 50}, labels=_best_of(stats)))
        _check_shown(db, str(PLANTED))
        with pytest.raises(AssertionError):
            db.write_measurement(Address.parse(PLANTED), Measured("x", {}, {"density": np.zeros(F)}))
        assert db.measurements(PLANTED).keys() == {"corpus_labels"}


def _check_shown(db: FeatureDB, site: str) -> None:
    assert [(each.name, each.f1, each.share) for each in db.feature((site, 5)).corpus_labels] == [
        ("science", 0.5, 0.6),
        ("sports_news", 0.25, 0.4),
    ]
    assert db.sql("select ref, label, f1 from corpus_labels order by f1 desc limit 1").rows == [
        (f"feature:{site}/7", "sports_news", 0.75)
    ]
    hits = db.search("news", by="corpus_label")
    assert [hit.feature for hit in hits] == [7, 5] and "label 'sports_news'" in hits[0].why
    assert [hit.feature for hit in db.search("science", by="corpus_label", where="density < 2")] == [5]
    assert db.search("new", by="corpus_label") == []
