"""Everything that the pass accumulates equals brute force over the whole store, however the stream is cut."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_db.index.accumulators import Accumulators, Block, BuildConfig, Hitters
from feature_db.index.words import Vocabulary, Words
from feature_db.labels.token_classes import CLASSES
from feature_db.store.statistics import bin_edges
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, F, PlantedStore, make_store

# Enough slots that no sketch ever drops anything.
EXACT = BuildConfig(slots=400, top=7, sample=30, before=6, after=4, duplicate_radius=3)


def run(lm: LanguageModel, store: PlantedStore, config: BuildConfig, batch_tokens: int = 128) -> tuple[Accumulators, Words]:
    """The pass over a store whose activations are its codes."""
    vocabulary = Vocabulary.of(lm.token_strings(range(lm.vocab_size)))
    words = Words(vocabulary, lm.decode)
    accumulators = Accumulators(F, len(vocabulary), config)
    features = np.arange(F)
    for block in store.stream([SITE], batch_tokens=batch_tokens):
        tokens, position, document = (c.numpy() for c in (block.tokens_N, block.position_N, block.document_N))
        counted = ~block.special_N.numpy()
        values = block.acts[SITE].numpy()
        indices = np.ascontiguousarray(np.broadcast_to(features, values.shape))
        read = words.read(tokens, position, document, counted)
        rows = Block(block.start, tokens, vocabulary.canonical[tokens], position, document, counted, values, indices)
        assert accumulators.add(rows, read) == -1
    accumulators.finish()
    return accumulators, words


def pieces(store: PlantedStore) -> list[list[int]]:
    """Rows of each document's part in each context."""
    found: list[list[int]] = []
    for i in range(store.n_tokens):
        if not found or store.position[i] == 0 or store.document[i] != store.document[i - 1]:
            found.append([])
        found[-1].append(i)
    return found


def words_of(lm: LanguageModel, store: PlantedStore) -> list[tuple[str, list[int]]]:
    """(word, its rows), found with a regular expression in the text of every piece. Punctuation is left out."""
    found = []
    for piece in pieces(store):
        ordinary = [i for i in piece if not store.special[i]]
        # A character torn between tokens shows up with the last of them, which then stands for them all.
        text, owner = "", []
        for n, i in enumerate(ordinary):
            now = lm.decode(store.tokens[ordinary[: n + 1]].tolist())
            while not now.startswith(text) or now == text:
                text = text[:-1]
            owner = owner[: len(text)] + [i] * (len(now) - len(text))
            text = now
        rows_of_token: dict[int, list[int]] = defaultdict(list)
        shown = None
        for i in reversed(ordinary):
            shown = i if i in owner else shown
            rows_of_token[shown or i].append(i)
        for match in re.finditer(r"['’\ufffd]*[\w\ufffd][\w'’\ufffd]*", text):
            rows = sorted({r for at in owner[match.start() : match.end()] for r in rows_of_token[at]})
            found.append((match[0].strip("'’\ufffd").casefold() or match[0], rows))
    return found


@pytest.fixture(scope="module", params=["pack", "document"])
def planted(request: pytest.FixtureRequest, tiny_lm: LanguageModel) -> PlantedStore:
    return make_store(tiny_lm, packing=request.param)


@pytest.fixture(scope="module")
def done(tiny_lm: LanguageModel, planted: PlantedStore) -> tuple[Accumulators, Words]:
    return run(tiny_lm, planted, EXACT)


def test_moments_equal_brute_force(planted: PlantedStore, done: tuple[Accumulators, Words]) -> None:
    m, acts = done[0].moments, planted.acts[~planted.special].astype(np.float64)
    assert done[0].n_tokens == len(acts)
    assert done[0].n_documents == len(np.unique(planted.document[~planted.special]))
    np.testing.assert_array_equal(m.firing, (acts > 0).sum(0))
    np.testing.assert_allclose(m.total, acts.sum(0), rtol=1e-12)
    np.testing.assert_allclose(m.square, (acts**2).sum(0), rtol=1e-12)
    np.testing.assert_array_equal(m.largest, acts.max(0).astype(np.float32))
    for f in range(F):
        np.testing.assert_array_equal(m.histogram[f], np.histogram(acts[acts[:, f] > 0, f], bin_edges())[0])


def test_token_hits_equal_brute_force(planted: PlantedStore, done: tuple[Accumulators, Words]) -> None:
    np.testing.assert_array_equal(
        done[0].token_count, np.bincount(planted.tokens[~planted.special], minlength=len(done[0].token_count))
    )
    for f in range(F):
        rows = np.flatnonzero((planted.acts[:, f] > 0) & ~planted.special)
        for token in np.unique(planted.tokens[rows]).tolist():
            on = rows[planted.tokens[rows] == token]
            check_slot(done[0].tokens, f, token, planted.acts[on, f], hits=len(on))
        assert (done[0].tokens.item[f] >= 0).sum() == len(np.unique(planted.tokens[rows]))


def test_word_hits_equal_brute_force(tiny_lm: LanguageModel, planted: PlantedStore, done: tuple[Accumulators, Words]) -> None:
    accumulators, words = done
    occurrences = words_of(tiny_lm, planted)
    known = {word for word, _ in occurrences}
    assert {"happy", "don't", "café", "naïve", "犬", "12", "lily", "yes"} <= known
    numbers = {text: n for n, text in enumerate(words.texts)}
    counts = words.counts()
    for word in known:
        assert counts[numbers[word]] == sum(other == word for other, _ in occurrences), word
    for f in (1, 2, 15, 31):
        for word in known:
            fired = [planted.acts[rows, f] for other, rows in occurrences if other == word]
            values = np.concatenate(fired)
            if (values > 0).any():
                check_slot(accumulators.words, f, numbers[word], values[values > 0], hits=sum(bool((v > 0).any()) for v in fired))
    assert {words.texts[i] for i in accumulators.words.item[2] if i >= 0} == {"happy"}


def check_slot(hitters: Hitters, f: int, item: int, values: Any, hits: int) -> None:
    (slot,) = np.flatnonzero(hitters.item[f] == item)
    assert hitters.slack[f, slot] == 0
    assert hitters.tokens[f, slot] == len(values)
    assert hitters.hits[f, slot] == hits
    assert hitters.peak[f, slot] == values.max()
    np.testing.assert_allclose(hitters.mass[f, slot], values.astype(np.float64).sum(), rtol=1e-12)


def test_following_words_are_those_that_begin_next(
    tiny_lm: LanguageModel, planted: PlantedStore, done: tuple[Accumulators, Words]
) -> None:
    accumulators, words = done
    begins = {rows[0]: word for word, rows in words_of(tiny_lm, planted)}
    inside = {i: piece[-1] for piece in pieces(planted) for i in piece}
    for f in (1, 15):
        mass: dict[str, float] = defaultdict(float)
        for i in np.flatnonzero((planted.acts[:, f] > 0) & ~planted.special).tolist():
            if i + 1 in begins and i < inside[i]:
                mass[begins[i + 1]] += float(planted.acts[i, f])
        for word, expected in mass.items():
            (slot,) = np.flatnonzero(accumulators.next_words.item[f] == words.texts.index(word))
            np.testing.assert_allclose(accumulators.next_words.mass[f, slot], expected, rtol=1e-12)


def test_top_examples_equal_brute_force(tiny_lm: LanguageModel, planted: PlantedStore, done: tuple[Accumulators, Words]) -> None:
    top, acts = done[0].top, np.where(planted.special[:, None], 0, planted.acts)
    texts = tiny_lm.token_strings(range(tiny_lm.vocab_size))
    for f in range(F):
        best: dict[Any, tuple[float, int, list[int]]] = {}
        peaks: dict[int, tuple[int, list[int]]] = {}
        for piece in pieces(planted):
            peak, document = piece[int(np.argmax(acts[piece, f]))], int(planted.document[piece[0]])
            if acts[peak, f] > (acts[peaks[document][0], f] if document in peaks else 0):
                peaks[document] = peak, piece
        for peak, piece in peaks.values():
            if acts[peak, f] > 0:
                around = [i for i in piece if abs(i - peak) <= EXACT.duplicate_radius]
                same = tuple(
                    re.sub(r"\d", "0", texts[planted.tokens[i]].strip().casefold()) or texts[planted.tokens[i]] for i in around
                )
                key = (peak - around[0], same)
                if key not in best or acts[peak, f] > best[key][0]:
                    best[key] = (float(acts[peak, f]), peak, piece)
        expected = sorted(best.values(), key=lambda entry: (-entry[0], entry[1]))[: EXACT.top]
        n = int(top.filled[f])
        assert len(set(top.document[f, :n].tolist())) == n
        order = sorted(range(n), key=lambda s: (-top.value[f, s], top.row[f, s]))
        assert [(float(top.value[f, s]), int(top.row[f, s])) for s in order] == [(value, row) for value, row, _ in expected]
        for s, (_, peak, piece) in zip(order, expected):
            window = [i for i in piece if -EXACT.before <= i - peak <= EXACT.after]
            length = int(top.length[f, s])
            assert length == len(window) and window[int(top.offset[f, s])] == peak
            np.testing.assert_array_equal(top.tokens[f, s, :length], planted.tokens[window])
            np.testing.assert_array_equal(top.values[f, s, :length], acts[window, f])
            assert (top.document[f, s], top.position[f, s]) == (planted.document[peak], planted.position[peak])


def test_sample_is_of_firing_tokens_without_repeats(planted: PlantedStore, done: tuple[Accumulators, Words]) -> None:
    sample, acts = done[0].sample, np.where(planted.special[:, None], 0, planted.acts)
    for f in range(F):
        rows = sample.row[f, : sample.filled[f]]
        assert len(rows) == min(EXACT.sample, (acts[:, f] > 0).sum()) == len(set(rows.tolist()))
        np.testing.assert_array_equal(sample.value[f, : len(rows)], acts[rows, f])


def test_sample_is_uniform(tiny_lm: LanguageModel) -> None:
    store = make_store(tiny_lm, documents=60)
    sample = run(tiny_lm, store, BuildConfig(sample=100))[0].sample
    deviations = []
    for f in range(1, F):
        rows = np.flatnonzero((store.acts[:, f] > 0) & ~store.special)
        n, k = len(rows), int(sample.filled[f])
        if n > k:
            rank = np.searchsorted(rows, sample.row[f, :k]).mean()
            # Of k numbers drawn from 0..n-1 without replacement.
            deviations.append((rank - (n - 1) / 2) / np.sqrt((n + 1) * (n - k) / (12 * k)))
    assert len(deviations) > 10
    assert abs(np.mean(deviations)) < 4 / np.sqrt(len(deviations)) and np.abs(deviations).max() < 4.5


@settings(max_examples=15, deadline=None)
@given(batch_tokens=st.integers(1, 2000), seed=st.integers(0, 3))
def test_blocks_do_not_matter(tiny_lm: LanguageModel, batch_tokens: int, seed: int) -> None:
    store = make_store(tiny_lm, documents=12, seed=seed)
    config = BuildConfig(slots=5, top=4, sample=6)
    whole, cut = (run(tiny_lm, store, config, n)[0].state() for n in (10**9, batch_tokens))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, cut[name], err_msg=name)


def test_memory_does_not_grow_with_tokens(tiny_lm: LanguageModel) -> None:
    sizes = []
    for documents in (5, 80):
        accumulators, _ = run(tiny_lm, make_store(tiny_lm, documents=documents), BuildConfig(slots=8))
        sizes.append({name: array.nbytes for name, array in accumulators.state().items()})
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("slots", [4, 16, 48])
def test_small_sketches_miss_nothing_heavy(tiny_lm: LanguageModel, store: PlantedStore, slots: int) -> None:
    sketch = run(tiny_lm, store, BuildConfig(slots=slots))[0].tokens
    for f in range(F):
        acts = np.where(store.special, 0, store.acts[:, f]).astype(np.float64)
        true = np.bincount(store.tokens, weights=acts)
        found = {int(t): s for s, t in enumerate(sketch.item[f]) if t >= 0}
        assert set(np.flatnonzero(true > true.sum() / slots).tolist()) <= set(found)
        for token, s in found.items():
            assert sketch.mass[f, s] <= true[token] * (1 + 1e-12)
            assert true[token] <= (sketch.mass[f, s] + sketch.slack[f, s]) * (1 + 1e-12)
            assert sketch.slack[f, s] <= true.sum() / slots * (1 + 1e-12)


def test_classes_of_tokens(tiny_lm: LanguageModel, store: PlantedStore) -> None:
    accumulators, _ = run(tiny_lm, store, EXACT)
    texts = tiny_lm.token_strings(store.tokens.tolist())
    ordinary = ~store.special
    first = [next(i for i in range(b, store.n_tokens) if ordinary[i]) for b in np.flatnonzero(store.position == 0)]
    rules = {
        "digits": lambda i: texts[i].strip().isdigit(),
        "upper": lambda i: len(texts[i].strip()) > 1 and texts[i].strip().isalpha() and texts[i].strip().isupper(),
        "newline": lambda i: "\n" in texts[i] and not texts[i].strip(),
        "first_token": lambda i: i in first,
    }
    for name, rule in rules.items():
        c = list(CLASSES).index(name)
        rows = [i for i in np.flatnonzero(ordinary).tolist() if rule(i)]
        assert accumulators.class_count[c] == len(rows) > 0, name
        np.testing.assert_array_equal(accumulators.moments.classes[:, c], (store.acts[rows] > 0).sum(0), err_msg=name)
    pieces_of = [rows for _, rows in words_of(tiny_lm, store) if len(rows) > 1]
    assert accumulators.class_count[list(CLASSES).index("first_piece")] == len(pieces_of)
    assert accumulators.class_count[list(CLASSES).index("later_piece")] == sum(len(rows) - 1 for rows in pieces_of)
