"""Features that fire together: against dense counts in float64, and planted pairs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_db.index.accumulators import Block, Moments
from feature_db.index.coactivation import KEPT, KINDS, LEAST, STRONGEST, WAYS, AllPairs, Pairs, PartnersOf, Table
from feature_db.index.kernels import add_moments


def block(acts: NDArray[np.float32], counted: NDArray[np.bool_] | None = None, row: int = 0) -> Block:
    """A block whose code has an entry for each feature, in another order on each row."""
    N, F = acts.shape
    order = np.random.default_rng(0).permuted(np.tile(np.arange(F), (N, 1)), axis=1)
    zeros = np.zeros(N, np.int32)
    counted = np.ones(N, bool) if counted is None else counted
    return Block(row, zeros, zeros, zeros, zeros.astype(np.int64), counted, np.take_along_axis(acts, order, 1), order)


def planted(N: int = 3000, F: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """Features that fire at random, but 1 and 2 nearly always together, and 4 (rare) only where 3 (frequent) fires."""
    random = np.random.default_rng(seed)
    acts = np.where(random.random((N, F)) < np.geomspace(0.02, 0.4, F), random.lognormal(0, 1, (N, F)), 0)
    acts[:, 1] = np.where(random.random(N) < 0.05, random.lognormal(0, 1, N), 0)
    acts[:, 2] = acts[:, 1] * (random.random(N) < 0.95)
    acts[:, 3] = np.where(random.random(N) < 0.3, 1, 0)
    acts[:, 4] = np.where((acts[:, 3] > 0) & (random.random(N) < 0.05), 1, 0)
    acts[:, 5] = 0
    return acts.astype(np.float32)


def moments(acts: NDArray[np.float32], counted: NDArray[np.bool_]) -> Moments:
    found = Moments.empty(acts.shape[1])
    assert add_moments(block(acts, counted), np.zeros(len(acts), np.int32), found) == -1
    return found


def dense(acts: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Co-firings, log2 of their ratio to chance, and Pearson correlations of all pairs."""
    fires = (acts > 0).astype(np.float64)
    both = fires.T @ fires
    with np.errstate(all="ignore"):
        pmi = np.log2(both * len(acts) / np.outer(fires.sum(0), fires.sum(0)))
        correlation = np.nan_to_num(np.corrcoef(acts.astype(np.float64).T))
    return both, pmi, correlation


def test_partners_of_a_small_dictionary_equal_dense_counts() -> None:
    acts = planted()
    counted = np.random.default_rng(1).random(len(acts)) < 0.9
    pairs = Pairs(acts.shape[1], slots=64)
    assert isinstance(pairs.counts, AllPairs)
    for start in range(0, len(acts), 700):
        pairs.add(block(acts[start : start + 700], counted[start : start + 700]))
    n = int(counted.sum())
    of = PartnersOf(pairs, moments(acts, counted), n)
    parts = [of.of(slice(0, 7)), of.of(slice(7, 60))]
    found = type(parts[0])(*(np.concatenate(columns) for columns in zip(*parts)))
    both, pmi, correlation = dense(acts[counted])
    for f in range(60):
        for kind, values in zip(range(2), (pmi, correlation)):
            possible = [g for g in range(60) if g != f and both[f, g] >= LEAST and values[f, g] > 0]
            k = min(len(possible), KEPT)
            best, others = np.sort(values[f, possible])[::-1][:k], found.other[f, kind, :k]
            np.testing.assert_allclose(found.value[f, kind, :k], best, rtol=1e-9, err_msg=f"{KINDS[kind]} of {f}")
            np.testing.assert_allclose(found.value[f, kind, :k], values[f, others], rtol=1e-9)
            assert len(set(others.tolist())) == k and f not in others and (found.other[f, kind, k:] == -1).all()
            np.testing.assert_array_equal(found.both[f, kind, :k], both[f, others])
            np.testing.assert_allclose(found.chance[f, kind, :k], both[f, f] * np.diag(both)[others] / n)
            assert not found.slack[f, kind, :k].any()
    assert found.other[1, :, 0].tolist() == [2, 2] and found.other[4, 0, 0] == 3
    assert (found.other[5] == -1).all()


@settings(max_examples=8, deadline=None)
@given(slots=st.integers(1, 40), seed=st.integers(0, 5))
def test_tables_know_what_they_missed(slots: int, seed: int) -> None:
    F = 330
    acts = planted(600, F, seed)
    acts[:, 50:] *= np.random.default_rng(seed).random((600, F - 50)) < 0.1
    pairs = Pairs(F, slots)
    assert isinstance(pairs.counts, Table)
    pairs.add(block(acts))
    t, sets = pairs.counts, max(1, slots // WAYS)
    both = dense(acts)[0]
    np.fill_diagonal(both, 0)
    products = acts.astype(np.float64).T @ acts.astype(np.float64)
    for f in range(F):
        kept = {int(g): s for s, g in enumerate(t.item[f]) if g >= 0}
        for g, s in kept.items():
            assert t.both[f, s] <= both[f, g] <= int(t.both[f, s]) + int(t.slack[f, s])
            if not t.slack[f, s]:
                assert t.product[f, s] == pytest.approx(products[f, g])
        for group in range(sets):
            inside = np.arange(group, F, sets)
            heavy = inside[both[f, inside] > both[f, inside].sum() / WAYS]
            assert set(heavy.tolist()) <= set(kept)


def test_a_table_finds_what_all_pairs_find() -> None:
    """A rare feature stands in its own table only, and is still the partner of the frequent one."""
    F = 600
    acts = planted(4000, F)
    acts[:, 6:] *= np.random.default_rng(2).random((4000, F - 6)) < 0.03
    table, whole = Pairs(F, slots=64), Pairs(F, slots=F)
    assert isinstance(table.counts, Table) and isinstance(whole.counts, AllPairs)
    for pairs in (table, whole):
        pairs.add(block(acts))
    all_counted = np.ones(len(acts), bool)
    mine, exact = (PartnersOf(p, moments(acts, all_counted), len(acts)).of(slice(0, 6)) for p in (table, whole))
    for f, g in ((1, 2), (2, 1), (4, 3)):
        assert mine.other[f, :, 0].tolist()[0] == exact.other[f, :, 0].tolist()[0] == g
        assert mine.both[f, 0, 0] == exact.both[f, 0, 0]
    assert 4 in exact.other[3, 0] and 4 in mine.other[3, 0]


@pytest.mark.parametrize("slots", [4, 64])
def test_ranges_of_features_together_are_all(slots: int) -> None:
    acts = planted(500)
    whole, parts = Pairs(60, slots), [Pairs(60, slots, own) for own in (range(17), range(17, 17), range(17, 60))]
    for pairs in (whole, *parts):
        pairs.add(block(acts))
    for name, array in whole.counts._asdict().items():
        np.testing.assert_array_equal(array, np.concatenate([getattr(part.counts, name) for part in parts]))


def _random_table(F: int, slots: int) -> tuple[Pairs, Moments]:
    """A full table of random counts, some below LEAST: feature f has one partner of each set, and often that one has f."""
    random, pairs = np.random.default_rng(0), Pairs(F, slots)
    assert isinstance(pairs.counts, Table)
    _, both, slack, product = t = pairs.counts
    item = random.integers(0, F // slots, (F, slots)) * slots + np.arange(slots)
    t.item[:] = np.where(item == np.arange(F)[:, None], -1, item)
    both[:], slack[:], product[:] = (
        random.integers(1, 40, both.shape),
        random.integers(0, 9, both.shape),
        random.random(both.shape),
    )
    firing = np.full(F, 200)
    moments = Moments.empty(F)
    moments.firing[:], moments.total[:], moments.square[:] = firing, firing * 0.01, firing * 0.1
    return pairs, moments


def test_the_partners_of_a_table_in_blocks_are_the_best_of_both_tables() -> None:
    F, n = 960, 100_000
    pairs, moments = _random_table(F, 64)
    t = pairs.counts
    assert isinstance(t, Table)
    stands: list[dict[int, tuple[int, int, float]]] = [{} for _ in range(F)]
    entries = [(f, s) for f in range(F) for s in range(64) if t.item[f, s] >= 0 and t.both[f, s] >= LEAST]
    for own in (True, False):  # where both tables say the same, the own one counts
        for f, s in entries:
            both, slack, product = int(t.both[f, s]), int(t.slack[f, s]), float(t.product[f, s])
            a, b = (f, int(t.item[f, s])) if own else (int(t.item[f, s]), f)
            known = stands[a].get(b)
            if known is None or (-both, slack) < (-known[0], known[1]):
                stands[a][b] = both, slack, product
    of = PartnersOf(pairs, moments, n)
    for block in (slice(0, 1), slice(1, 400), slice(400, F)):
        found = of.of(block)
        for i, f in enumerate(range(block.start, block.stop)):
            best = sorted(stands[f], key=lambda g: (-stands[f][g][0], g))[:KEPT]
            assert found.other[i, 0].tolist() == best
            assert found.both[i, 0].tolist() == [stands[f][g][0] for g in best]
            assert found.slack[i, 0].tolist() == [stands[f][g][1] for g in best]
            strongest = sorted((stands[f][g][2] for g in stands[f]), reverse=True)[:KEPT]
            products = [stands[f][g][2] for g in found.other[i, 1].tolist()]
            assert products == strongest


def test_partners_need_little_memory_beside_the_table() -> None:
    pairs, moments = _random_table(4096, 256)
    table = sum(array.nbytes for array in pairs.counts)
    PartnersOf(*_random_table(640, 64), 1000).of(slice(0, 1))  # compile
    tracemalloc.start()
    try:
        of = PartnersOf(pairs, moments, 100_000)
        for start in range(0, 4096, 512):
            of.of(slice(start, start + 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < table / 2


def test_only_the_strongest_of_very_many_are_paired() -> None:
    F = STRONGEST + 40
    acts = np.random.default_rng(0).permuted(np.tile(np.arange(1, F + 1, dtype=np.float32), (9, 1)), axis=1)
    pairs = Pairs(F, F)
    pairs.add(block(acts))
    strong = np.where(acts > F - STRONGEST, acts, 0)
    both = dense(strong)[0]
    assert isinstance(pairs.counts, AllPairs)
    np.testing.assert_array_equal(pairs.counts.both, [both[f, g] for f in range(F) for g in range(f)])


def test_a_dictionary_without_any_pair() -> None:
    pairs = Pairs(3, 8)
    none = PartnersOf(pairs, Moments.empty(3), 0).of(slice(0, 3))
    assert (none.other == -1).all()
