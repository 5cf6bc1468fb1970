from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_db.store.statistics import bin_edges, pack_histogram, quantiles, unpack_histogram, wilson


@given(n=st.integers(1, 10**7), share=st.floats(0, 1))
def test_wilson_equals_scipy(n: int, share: float) -> None:
    from scipy.stats import binomtest

    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    low, high = wilson(hits, n)
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_wilson_of_nothing() -> None:
    low, high = wilson(0, 0)
    assert (low, high) == (0, 1)


def test_bins_are_eighths_of_octaves() -> None:
    edges = bin_edges()
    assert edges[0] == 2.0**-20 and edges[-1] == 2.0**20
    assert np.all(np.diff(edges) / edges[:-1] <= 0.125)
    assert set(edges[::8].tolist()) == {2.0**e for e in range(-20, 21)}


@given(
    values=st.lists(st.floats(2.0**-16, 2.0**16, width=32), min_size=1, max_size=300),
    q=st.lists(st.floats(0, 1), min_size=1, max_size=9),
)
def test_quantiles_lie_within_a_bin(values: list[float], q: list[float]) -> None:
    array = np.array(values, np.float32)
    histogram = np.histogram(array, bin_edges())[0].astype(np.uint32)[None]
    got = quantiles(histogram, array.max(keepdims=True), q)[0]
    low, high = (np.quantile(array.astype(np.float64), q, method=m) for m in ("lower", "higher"))
    # Between the neighbouring order statistics, give or take one rank and the width of a bin.
    below = np.quantile(array.astype(np.float64), np.maximum(np.array(q) - 1 / len(values), 0), method="lower")
    above = np.quantile(array.astype(np.float64), np.minimum(np.array(q) + 1 / len(values), 1), method="higher")
    assert np.all(got >= np.minimum(low, below) / 1.125 * (1 - 1e-9)) and np.all(
        got <= np.maximum(high, above) * 1.125 * (1 + 1e-9)
    )
    assert quantiles(histogram, array.max(keepdims=True), [1.0])[0, 0] == array.max()


def test_quantiles_of_a_feature_that_never_fires() -> None:
    assert quantiles(np.zeros((1, len(bin_edges()) - 1), np.uint32), np.zeros(1, np.float32), [0.5])[0, 0] == 0


@given(st.dictionaries(st.integers(0, 319), st.integers(0, 2**32 - 1)))
def test_histograms_survive_packing(filled: dict[int, int]) -> None:
    counts = np.zeros(320, np.uint32)
    for place, count in filled.items():
        counts[place] = count
    np.testing.assert_array_equal(unpack_histogram(pack_histogram(counts)), counts)
