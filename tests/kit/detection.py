"""Codes and labels of any kind, and slow oracles for measures of detection."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import precision_recall_curve, roc_auc_score


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(N, F) activations with ties and negative values, and (N, C) labels."""
    N, F, C = draw(st.integers(2, 30)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    few = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 2.5, -1.0, -0.25])
    acts_NF = draw(arrays(np.float32, (N, F), elements=few))
    return acts_NF, draw(arrays(np.bool_, (N, C)))


def slow_auc(acts_NF: np.ndarray, labels_NC: np.ndarray) -> np.ndarray:
    """(F, C) AUC by scikit-learn; NaN for concepts that all tokens have, or none."""
    both = [0 < column.sum() < len(column) for column in labels_NC.T]
    return np.array([[roc_auc_score(c, f) if ok else np.nan for c, ok in zip(labels_NC.T, both, strict=True)] for f in acts_NF.T])


def slow_threshold(acts_N: np.ndarray, member_N: np.ndarray) -> tuple[float, float]:
    """The best F1 of a feature, and the largest threshold that reaches it, by scikit-learn; (0, inf) if none has any F1."""
    if not (acts_N[member_N] > 0).any():
        return 0.0, np.inf
    precision, recall, thresholds = precision_recall_curve(member_N, acts_N)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-9))[:-1]
    f1, thresholds = f1[thresholds > 0], thresholds[thresholds > 0]
    return float(f1.max()), float(thresholds[f1 > f1.max() - 1e-9].max())
