"""Linear probes of two classes: logistic, linear, mass-mean, and sparse. Standardisation belongs to the fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from saekit.plugins import Registry

MakeDirection = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]


@dataclass(frozen=True)
class Fitted:
    """log-odds = x[:, columns] @ weight_K + bias, in the coordinates of the activation.

    Attributes:
        weight_K: (K,) weights of the columns.
        bias: added.
        columns: (K,) columns that are used; None for all.
    """

    weight_K: np.ndarray
    bias: float
    columns: np.ndarray | None = None

    def odds(self, x_ND: Any) -> np.ndarray:
        """(N,) log-odds of class 1."""
        x = x_ND if self.columns is None else x_ND[:, self.columns]
        return np.asarray(x @ self.weight_K).ravel() + self.bias

    def probability(self, x_ND: Any) -> np.ndarray:
        """(N,) probability of class 1."""
        from scipy.special import expit

        return expit(self.odds(x_ND))


def difference(x_NF: Any, label_N: np.ndarray) -> np.ndarray:
    """(F,) mean over examples with the label minus the mean over examples without it."""
    return np.asarray(x_NF[label_N].mean(axis=0)).ravel() - np.asarray(x_NF[~label_N].mean(axis=0)).ravel()


def largest(size_F: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest, the largest first."""
    return np.argsort(-size_F, kind="stable")[:k]


def logistic(x_ND: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression (L2, C = 1), classes weighted alike."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=1000, class_weight="balanced").fit(x_ND, label_N)
    return fitted.coef_[0], float(fitted.intercept_[0])


def linear(x_ND: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, float]:
    """Ridge regression on -1 and 1 (alpha 1), classes weighted alike."""
    from sklearn.linear_model import RidgeClassifier

    fitted = RidgeClassifier(class_weight="balanced").fit(x_ND, label_N)
    return fitted.coef_.ravel(), float(np.ravel(fitted.intercept_)[0])


def mass_mean(x_ND: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, float]:
    """sigma(theta^T S^-1 x) with theta the difference of the class means and S the covariance within classes (Marks and Tegmark
    2023, arXiv 2310.06824), shrunk by Ledoit and Wolf's rule. The bias puts the border halfway between the means."""
    from sklearn.covariance import LedoitWolf

    means = np.stack([x_ND[label_N == k].mean(0) for k in (0, 1)])
    within = LedoitWolf(assume_centered=True).fit(x_ND - means[label_N.astype(int)])
    weight_D = within.precision_ @ (means[1] - means[0])
    return weight_D, float(-weight_D @ means.mean(0))


KINDS: Registry[MakeDirection] = Registry("probe", {"logistic": logistic, "linear": linear, "mass_mean": mass_mean})
"""Kinds of probes: functions of standardised examples (N, D) and labels (N,) that return weights and a bias. "sparse" is logistic
on the k columns of the largest difference of means (Gurnee et al. 2023, arXiv 2305.01610)."""


def fit(x_ND: Any, label_N: np.ndarray, kind: str = "logistic", k: int = 16) -> Fitted:
    """Fit a probe. Columns are centred and divided by their standard deviations on these examples.

    Args:
        x_ND: (N, D) examples, dense or sparse.
        label_N: (N,) bool.
        kind: a row of :data:`KINDS`, or "sparse".
        k: columns of a sparse probe.

    Raises:
        ConfigError: there is no such kind.
    """
    make = KINDS.find("logistic" if kind == "sparse" else kind)
    columns = None
    if kind == "sparse":
        columns = largest(np.abs(difference(x_ND, label_N)), k)
        x_ND = x_ND[:, columns]
    x = np.asarray(x_ND.toarray() if hasattr(x_ND, "toarray") else x_ND, np.float64)
    mean_D, size_D = x.mean(0), x.std(0)
    size_D = np.where(size_D > 0, size_D, 1.0)
    weight_D, bias = make((x - mean_D) / size_D, label_N)
    weight_D = weight_D / size_D
    return Fitted(weight_D, bias - float(weight_D @ mean_D), columns)
