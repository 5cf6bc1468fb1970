"""F1 of detectors: equal to scikit-learn's, with thresholds of other documents; what an AUC alone would say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array
from sklearn.metrics import precision_recall_fscore_support

from saekit.evaluate.concepts import f1 as f1s
from saekit.evaluate.concepts import recovery
from saekit.evaluate.concepts.compared import Measured, compared
from saekit.evaluate.concepts.detection import detected_f1
from saekit.evaluate.concepts.f1 import best_thresholds, counts_of_all, counts_of_pairs
from saekit.evaluate.concepts.results import Detector, Recoveries, Recovery, Words
from saekit.locate.magnitude.auc import auc
from tests.kit.detection import cases, slow_threshold


@given(cases(), st.integers(1, 20))
def test_thresholds_equal_a_search_over_all(case: tuple[np.ndarray, np.ndarray], block: int) -> None:
    acts_NF, labels_NC = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f1s, "_NONZEROS", block)
        found = best_thresholds(csc_array(acts_NF), csr_array(labels_NC.astype(np.int64)))
    slow = np.array([[slow_threshold(acts_N, member_N) for member_N in labels_NC.T] for acts_N in acts_NF.T])
    np.testing.assert_allclose(found[0], slow[..., 0], atol=1e-12)
    np.testing.assert_array_equal(found[1], slow[..., 1])


@settings(max_examples=25)
@given(cases(), cases())
def test_counts_equal_scikit_learn(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> None:
    """Thresholds from one set of tokens, measured on another."""
    F, C = (min(one.shape[1], other.shape[1]) for one, other in zip(first, second, strict=True))
    (chosen_NF, own_NC), (acts_NF, labels_NC) = ((acts[:, :F], labels[:, :C]) for acts, labels in (first, second))
    _, threshold_FC = best_thresholds(csc_array(chosen_NF), csr_array(own_NC.astype(np.int64)))
    acts, labels = csc_array(acts_NF), csr_array(labels_NC.astype(np.int64))
    every = counts_of_all(acts, labels, threshold_FC)
    for f in range(F):
        pairs = counts_of_pairs(acts[:, [f] * C], labels, threshold_FC[f])
        for c in range(C):
            member_N, on_N = labels_NC[:, c], acts_NF[:, f] >= threshold_FC[f, c]
            expected = precision_recall_fscore_support(member_N, on_N, average="binary", pos_label=True, zero_division=0)
            for counts, at in ((every, (f, c)), (pairs, (c,))):
                assert (counts.precision[at], counts.recall[at], counts.f1[at]) == pytest.approx(expected[:3])


def test_thresholds_are_of_other_documents() -> None:
    """Swapping labels in the documents measured changes F1 there, and no threshold; in the others it changes the threshold."""
    acts_N1 = np.array([[3.0], [1.0], [3.0], [1.0]], np.float32)
    document_N = np.array([0, 0, 1, 1])
    strong, weak = np.array([[1], [0], [1], [0]]), np.array([[1], [0], [0], [1]])
    assert detected_f1(csc_array(acts_N1), csr_array(strong), document_N).item() == 1.0
    assert detected_f1(csc_array(acts_N1), csr_array(weak), document_N).item() == 0.0  # the best threshold here has 2 / 3


def test_a_broad_feature_has_a_high_auc_and_encodes_nothing() -> None:
    """Feature 0 fires on a tenth of the tokens, among them the concepts' few; no feature is precise."""
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(2):
        labels_NC = np.zeros((20_000, 3), bool)
        labels_NC[np.arange(90), np.arange(90) % 3] = True
        broad_N = labels_NC.any(axis=1) | (rng.random(20_000) < 0.1)
        acts_NF = np.stack([broad_N * rng.random(20_000), rng.random(20_000) * (rng.random(20_000) < 0.001)], axis=1)
        halves.append((csc_array(acts_NF.astype(np.float32)), csr_array(labels_NC.astype(np.int64))))
    (first, first_NC), (acts, labels) = halves
    by_auc = recovery._detectors(acts, labels, auc(first, first_NC).argmax(axis=0), np.zeros(3))
    f1_FC, threshold_FC = best_thresholds(first, first_NC)
    chosen = f1_FC.argmax(axis=0)
    best = recovery._detectors(acts, labels, chosen, threshold_FC[chosen, np.arange(3)])
    assert [(each.feature, each.serves, each.auc > 0.9, each.precision < 0.02) for each in by_auc] == [(0, 2, True, True)] * 3
    words = Words(1, 1.0, 1.0, 1.0)
    found = [Recovery(name, *two, 30, 30 / 20_000, words) for name, *two in zip("abc", best, by_auc, strict=True)]
    report = Recoveries("embed", tuple(found), (), 40_000)
    assert (report.encoded, report.share) == ((), 0.0)
    said = " ".join(report.section.summary)
    assert "0 of 3 concepts are encoded" in said
    assert "3 concepts at 0.9 or more; 3 of them are not encoded" in said
    assert "#0 for 3" in said
    assert all(", best for 2 more" in row["best AUC"] for row in report.rows)


def test_a_choice_by_chance_is_not_rewarded() -> None:
    """The best of many random features scores well only on the documents used for the choice."""
    rng = np.random.default_rng(0)
    halves = [
        (
            csc_array(rng.random((500, 400)) * (rng.random((500, 400)) < 0.05)),
            csr_array((rng.random((500, 1)) < 0.04).astype(int)),
        )
        for _ in range(2)
    ]
    (first, first_N1), (acts, labels) = halves
    f1_F1, threshold_F1 = best_thresholds(first, first_N1)
    (best,) = recovery._detectors(
        acts, labels, f1_F1.argmax(axis=0), threshold_F1.max(axis=0, where=f1_F1 == f1_F1.max(), initial=0)
    )
    assert f1_F1.max() > 0.25 > 0.15 > best.f1
    auc_F1 = auc(first, first_N1)
    (by_auc,) = recovery._detectors(acts, labels, auc_F1.argmax(axis=0), np.zeros(1))
    assert auc_F1.max() > 0.59 > 0.54 > by_auc.auc


def test_dictionaries_are_compared() -> None:
    def one(**f1: float) -> Recoveries:
        found = [
            Recovery(
                name, Detector(1, 0.5, value, value, value, 0.99, value), Detector(2, 0, 0.1, 0.1, 1, 0.99, 0.1), 50, 0.01, words
            )
            for name, value in f1.items()
        ]
        return Recoveries("embed", tuple(found), (), 1000)

    words = Words(3, 1.0, 1.0, 1.0)
    section = compared(
        [Measured("embed", 64, one(a=0.5, b=0.9, c=0.2)), Measured("embed@b", 32, one(a=0.4, b=0.6, c=0.49, d=0.1))]
    )
    assert [row["encoded (F1 ≥ 0.5)"] for row in section.rows] == [2, 1]
    assert [row["nowhere else"] for row in section.rows] == [1, 0]
    assert [row["of these not encoded"] for row in section.rows] == [1, 3]
    assert section.summary == ["together they encode 2 of 4 concepts", "encoded by none: c, d"]
