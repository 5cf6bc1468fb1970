"""Proportions of tokens and their intervals, where the tokens of one document are alike.

A sum over tokens is a sum over documents of sums. The variance of a proportion x / m is that of a ratio estimate with documents
as the primary units (Cochran, Sampling Techniques, 3rd ed., 1977, section 6.3). Its quotient with the variance of independent
tokens is the design effect (Kish 1965). The number of tokens divided by it goes into Wilson's interval, as Korn and Graubard
(Survey Methodology 24, 1998) do for the exact one. The design effect is estimated with D - 1 degrees of freedom, so they also
multiply the number by the squared quotient of the t quantiles for n - 1 and for D - 1 degrees. Where all documents agree (a
proportion of 0 or 1), the design effect is unknown, and each document counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.store.statistics import Z95, wilson

Counts = NDArray[np.int64]
"""(D,) a count for each document."""


class Score(NamedTuple):
    """A number that was measured on held-out documents."""

    value: float
    n: int
    """Tokens or texts that it was measured on."""
    low: float | None = None
    """Lower end of the 95 % interval; None where none is known."""
    high: float | None = None


def proportion(hits_D: Counts, trials_D: Counts) -> Score | None:
    """The proportion of hits among trials; None without trials.

    Args:
        hits_D: (D,) successes in each document.
        trials_D: (D,) trials in each document.
    """
    hits, trials = int(hits_D.sum()), int(trials_D.sum())
    if not trials:
        return None
    from scipy.special import stdtrit

    p, documents = hits / trials, int(np.count_nonzero(trials_D))
    effective = float(documents)
    if 0 < hits < trials and documents > 1:
        spread = float(np.square(hits_D - p * trials_D).sum()) * documents / (documents - 1) / trials**2
        independent = p * (1 - p) / trials
        effective = (
            trials / max(spread / independent, 1.0) * float(stdtrit(trials - 1, 0.975) / stdtrit(documents - 1, 0.975)) ** 2
        )
    low, high = wilson(p * effective, effective)
    return Score(p, trials, float(low), float(high))


def mean_of(first: Score, second: Score) -> Score:
    """The mean of two independent proportions, as balanced accuracy is of recall and specificity.

    The interval combines theirs by squares (Newcombe 1998, method 10; "MOVER"). `n` is the smaller of the two.
    """
    low = math.hypot(first.value - (first.low or 0.0), second.value - (second.low or 0.0)) / 2
    high = math.hypot((first.high or 0.0) - first.value, (second.high or 0.0) - second.value) / 2
    value = (first.value + second.value) / 2
    return Score(value, min(first.n, second.n), max(value - low, 0.0), min(value + high, 1.0))


def f1(both_D: Counts, either_D: Counts) -> Score | None:
    """F1 of two sets of tokens, from the tokens in both and in either: F1 = 2 J / (1 + J), where J is their proportion.

    F1 grows with J, so the interval of J gives that of F1.
    """
    jaccard = proportion(both_D, either_D)
    if jaccard is None:
        return None
    low, high = (2 * j / (1 + j) for j in (jaccard.low or 0.0, jaccard.high or 0.0))
    return Score(2 * jaccard.value / (1 + jaccard.value), jaccard.n, low, high)


def auroc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> Score | None:
    """Probability that a positive text has a larger value than a negative one, ties counting half; None without texts of a kind.

    The interval inverts a score test with the variance of Hanley and McNeil (1982), evaluated at the bound (Newcombe 2006,
    Statistics in Medicine 25, method 5), so that it holds at 0 and 1 too.

    Args:
        positive, negative: (M,) and (N,) values.
    """
    m, n = len(positive), len(negative)
    if not m or not n:
        return None
    above = np.sign(np.asarray(positive, np.float64)[:, None] - np.asarray(negative, np.float64)[None])
    area, half = float((above.mean() + 1) / 2), (m + n) / 2 - 1

    def outside(theta: float) -> bool:
        variance = theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / (m * n)
        return abs(area - theta) > Z95 * math.sqrt(max(variance, 0.0))

    return Score(area, m + n, _bound(outside, 0.0, area), _bound(outside, 1.0, area))


def _bound(outside: Callable[[float], bool], far: float, near: float) -> float:
    """Where an interval around `near` ends on the way to `far`."""
    if near == far or not outside(far):
        return far
    for _ in range(40):
        middle = (far + near) / 2
        far, near = (middle, near) if outside(middle) else (far, middle)
    return near
