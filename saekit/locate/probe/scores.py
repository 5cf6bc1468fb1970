"""How good a probe is: cross-validated by text, with control labels, description length, and calibration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from saekit.errors import ConfigError
from saekit.locate.probe.fit import Fitted

FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks of the online code (Voita and Titov 2020, arXiv 2003.12298)."""
Fit = Callable[[Any, np.ndarray], Fitted]


@dataclass(frozen=True)
class Scores:
    """Of one probe.

    Attributes:
        accuracy: mean of the accuracies on both classes, so that chance is .5; on texts that the probe was not fitted on.
        auc: area under the ROC curve on these.
        control: the same accuracy for labels that are drawn at random for each word type (Hewitt and Liang 2019).
        selectivity: accuracy - control.
        bits: online description length of the labels, in bits.
        compression: bits of a uniform code divided by `bits`.
        ece: expected calibration error, 10 bins of equal width. brier: mean squared error of the probability.
    """

    accuracy: float
    auc: float
    control: float
    selectivity: float
    bits: float
    compression: float
    ece: float
    brier: float

    def to_dict(self) -> dict[str, float]:
        """JSON values."""
        return asdict(self)


def held_out(x: Any, label_N: np.ndarray, text_N: np.ndarray, fit: Fit, folds: int = 5) -> np.ndarray:
    """(N,) probability of class 1 of each example, by a probe fitted on other texts.

    Raises:
        ConfigError: a class has fewer than two texts.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    n = min(folds, *(len(np.unique(text_N[label_N == k])) for k in (False, True)))
    if n < 2:
        raise ConfigError("Each class needs examples in two texts or more.", "Give more labelled texts.")
    found = np.full(len(label_N), np.nan)
    for train, test in StratifiedGroupKFold(n, shuffle=True, random_state=0).split(label_N, label_N, text_N):
        if len(np.unique(label_N[train])) == 2:
            found[test] = fit(x[train], label_N[train]).probability(x[test])
        else:
            found[test] = float(label_N[train][0])
    return found


def correct(p_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """(N,) 1 or 0 times the weight of the class, so that the mean is the mean of the accuracies on both classes."""
    weight_K = len(label_N) / (2 * np.maximum(1, np.bincount(label_N.astype(int), minlength=2)))
    return ((p_N > 0.5) == label_N) * weight_K[label_N.astype(int)]


def control_labels(type_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,) bool: a random label for each word type; both labels occur where there are two types.

    Raises:
        ConfigError: all examples are of one type.
    """
    kinds, which_N = np.unique(type_N, return_inverse=True)
    if len(kinds) < 2:
        raise ConfigError("All examples are the same word, so that there is no control task.", "Give other texts.")
    label_T = np.random.default_rng(seed).permutation(np.arange(len(kinds)) % 2 == 1)
    return label_T[which_N]


def description_length(x: Any, label_N: np.ndarray, fit: Fit, seed: int = 0) -> float:
    """Bits of the online code: each block is coded by a probe that was fitted on the blocks before it.

    The examples are shuffled. The first block, and blocks after only one class has occurred, are coded at one bit for each label.
    """
    order = np.random.default_rng(seed).permutation(len(label_N))
    x, y = x[order], label_N[order]
    ends = sorted({max(1, math.ceil(fraction * len(y))) for fraction in FRACTIONS})
    bits = float(ends[0])
    for start, stop in pairwise(ends):
        if len(np.unique(y[:start])) < 2:
            bits += stop - start
            continue
        p = np.clip(fit(x[:start], y[:start]).probability(x[start:stop]), 1e-6, 1 - 1e-6)
        bits -= float(np.log2(np.where(y[start:stop], p, 1 - p)).sum())
    return bits


def calibration(p_N: np.ndarray, label_N: np.ndarray, bins: int = 10) -> tuple[float, float]:
    """Expected calibration error and Brier score."""
    bin_N = np.minimum((p_N * bins).astype(int), bins - 1)
    gaps = [abs(p_N[bin_N == b].mean() - label_N[bin_N == b].mean()) * (bin_N == b).mean() for b in np.unique(bin_N)]
    return float(sum(gaps)), float(np.mean((p_N - label_N) ** 2))


def scored(
    x: Any, label_N: np.ndarray, text_N: np.ndarray, type_N: np.ndarray, fit: Fit, folds: int = 5
) -> tuple[Scores, np.ndarray, np.ndarray]:
    """The scores, and (N,) values whose means are the accuracy and the accuracy on control labels."""
    from sklearn.metrics import roc_auc_score

    p_N = held_out(x, label_N, text_N, fit, folds)
    right_N = correct(p_N, label_N)
    control_N = control_labels(type_N)
    right_control_N = correct(held_out(x, control_N, text_N, fit, folds), control_N)
    bits = description_length(x, label_N, fit)
    accuracy, control = float(right_N.mean()), float(right_control_N.mean())
    area = float(roc_auc_score(label_N, p_N))
    found = Scores(accuracy, area, control, accuracy - control, bits, len(label_N) / bits, *calibration(p_N, label_N))
    return found, right_N, right_control_N
