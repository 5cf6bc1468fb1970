from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_db.index.accumulators import Accumulators, BuildConfig
from feature_db.index.choose import choose
from feature_db.store.examples import TOP, Window, pack, unpack
from feature_db.store.statistics import quantiles
from saekit.errors import DatabaseError
from saekit.lm import LanguageModel
from tests.kit.planted import F, PlantedStore

from .test_accumulators import run


@st.composite
def windows(draw: st.DrawFn) -> Window:
    n = draw(st.integers(1, 40))
    ids = draw(st.lists(st.integers(0, draw(st.sampled_from([500, 200_000]))), min_size=n, max_size=n))
    values = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 3.25, 1e-6]), min_size=n, max_size=n))
    numbers = [draw(st.integers(0, top)) for top in (10, 2**40, 2**40, 2**20, n - 1)]
    return Window(*numbers, np.array(ids, np.int64), np.array(values, np.float32))


@given(st.lists(windows(), max_size=6))
def test_examples_survive_packing(given: list[Window]) -> None:
    largest = max((float(w.values.max()) for w in given), default=0)
    for before, after in zip(given, unpack(pack(given)), strict=True):
        pointers = [(w.bucket, w.row, w.document, w.position, w.peak) for w in (before, after)]
        assert pointers[0] == pointers[1]
        np.testing.assert_array_equal(before.token_ids, after.token_ids)
        np.testing.assert_array_equal(before.values > 0, after.values > 0)
        np.testing.assert_allclose(before.values, after.values, atol=largest / 60_000)


@given(st.binary(max_size=60))
def test_a_damaged_blob_is_a_typed_error(data: bytes) -> None:
    good = pack([Window(0, 9, 1, 2, 0, np.array([5, 6]), np.array([1.0, 0.0], np.float32))])
    for blob in (data, good[: len(data) % len(good)]):
        with pytest.raises(DatabaseError):
            unpack(blob)


def test_examples_come_from_every_tenth(tiny_lm: LanguageModel, store: PlantedStore) -> None:
    a: Accumulators = run(tiny_lm, store, BuildConfig())[0]
    deciles = quantiles(a.moments.histogram, a.moments.largest, np.arange(1, 10) / 10)
    reached = []
    for f, columns in enumerate(choose(a.top, a.sample, slice(1, F), deciles[1:], per_decile=2), start=1):
        chosen = columns.windows()
        top = [w for w in chosen if w.bucket == TOP]
        peaks = [float(w.values[w.peak]) for w in top]
        assert peaks == sorted(peaks, reverse=True) and peaks[0] == a.moments.largest[f]
        others = [w for w in chosen if w.bucket != TOP]
        assert [w.bucket for w in others] == sorted((w.bucket for w in others), reverse=True)
        for w in others:
            value = float(w.values[w.peak])
            edges = np.concatenate([[0], deciles[f], [np.inf]])
            assert edges[w.bucket - 1] <= value <= edges[w.bucket]
        assert len({w.row for w in chosen}) == len(chosen)
        for w in chosen:
            np.testing.assert_array_equal(store.tokens[w.row - w.peak :][: len(w.token_ids)], w.token_ids)
            assert (store.document[w.row], store.position[w.row]) == (w.document, w.position)
        for tenth in range(1, 11):
            same = [w.document for w in others if w.bucket == tenth]
            assert len(same) <= 2 and len(same) == len(set(same))
        if a.moments.firing[f] > 500:
            reached.append(len({w.bucket for w in others}))
    assert len(reached) > 5 and min(reached) >= 9 and np.mean(reached) > 9.5
