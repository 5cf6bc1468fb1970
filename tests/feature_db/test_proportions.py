"""Intervals hold what they promise where documents are alike inside, and equal the textbook ones where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from feature_db.scorers.proportions import auroc, f1, mean_of, proportion


def test_independent_tokens_give_wilson() -> None:
    """One token in each document: there is nothing to correct."""
    hits = np.arange(200) < 60
    found = proportion(hits.astype(int), np.ones(200, int))
    expected = binomtest(60, 200).proportion_ci(method="wilson")
    assert found is not None
    assert (found.value, found.n) == (0.3, 200)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.01)


@pytest.mark.parametrize("spread", [2.0, 20.0])
def test_the_interval_covers_the_truth(spread: float) -> None:
    """Documents of 1 to 40 tokens whose own proportions follow a beta distribution with mean .3."""
    random = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(400):
        trials = random.integers(1, 40, 60)
        hits = random.binomial(trials, random.beta(0.3 * spread, 0.7 * spread, 60))
        found = proportion(hits, trials)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 0.3 <= found.high
        plain = binomtest(int(hits.sum()), int(trials.sum())).proportion_ci(method="wilson")
        naive += plain.low <= 0.3 <= plain.high
    assert covered >= 0.92 * 400 and naive < covered


@pytest.mark.parametrize("documents", [3, 5, 10])
def test_the_interval_covers_the_truth_of_few_documents(documents: int) -> None:
    """Documents of 20 to 40 tokens whose own proportions follow a beta distribution with mean .5."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        trials = random.integers(20, 41, documents)
        found = proportion(random.binomial(trials, random.beta(2, 2, documents)), trials)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 0.5 <= found.high
    assert covered >= 0.92 * 2000


def test_no_and_all() -> None:
    assert proportion(np.zeros(3, int), np.zeros(3, int)) is None
    all_of_them = proportion(np.array([5, 7, 0]), np.array([5, 7, 0]))
    assert all_of_them is not None and all_of_them.value == all_of_them.high == 1 and all_of_them.low is not None
    assert all_of_them.low == pytest.approx(binomtest(2, 2).proportion_ci(method="wilson").low)  # two documents agree


def test_f1_and_balanced_accuracy() -> None:
    both, fires, predicted = np.array([3, 4]), np.array([5, 5]), np.array([4, 8])
    found = f1(both, fires + predicted - both)
    assert found is not None and found.value == pytest.approx(2 * 7 / (10 + 12))
    mean = mean_of(*(part for part in (proportion(both, fires), proportion(both, predicted)) if part))
    assert mean.value == pytest.approx((7 / 10 + 7 / 12) / 2) and mean.n == 10
    assert mean.low is not None and mean.high is not None and mean.low < mean.value < mean.high


def test_auroc() -> None:
    random = np.random.default_rng(0)
    positive, negative = random.normal(1, 1, 15), random.normal(0, 1, 25).round(1)
    found = auroc(positive, negative)
    expected = np.mean([(p > n) + (p == n) / 2 for p in positive for n in negative])
    assert found is not None and found.value == pytest.approx(expected) and found.n == 40
    perfect = auroc(np.ones(10), np.zeros(10))
    assert perfect is not None and (perfect.value, perfect.high) == (1, 1) and 0.6 < (perfect.low or 0) < 0.95
    assert auroc(positive, negative[:0]) is None
    truth, covered = 0.7602, 0  # of normal distributions one apart
    for _ in range(300):
        got = auroc(random.normal(1, 1, 10), random.normal(0, 1, 20))
        assert got is not None and got.low is not None and got.high is not None
        covered += got.low <= truth <= got.high
    assert covered >= 0.92 * 300
