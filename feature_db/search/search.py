"""Finds features by concept, without any hosted model: fuses the signals of :mod:`feature_db.search.signals`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.records import Hit
from feature_db.search.lookup import Lookup, Match, Scores
from feature_db.search.page import Page
from feature_db.search.signals import SIGNALS, Signal
from feature_db.store import stored
from feature_db.store.read import label_of
from feature_db.store.schema import FEATURES_PER_SAE, feature_id
from feature_db.store.stored import INT, REAL

FLOOR = 0.15
"""Hits with a lower score are not shown: queries about nothing in the corpus reach .14 (scripts/bench_search.py)."""
_CHUNK = 1024
_FIRST = 4 * _CHUNK

# Feature id -> signal -> (weight of the word in the query, match) of each word.
_Found = dict[int, dict[str, list[tuple[float, Match]]]]
_Reason = tuple[float, Callable[[], str]]


def chosen_signals(names: str | Sequence[str] | None) -> dict[str, Signal]:
    """The signals of these names; None: those that a search uses by default.

    Raises:
        ConfigError: one of them does not exist; the message names the nearest.
    """
    if names is None:
        return {name: signal for name, signal in SIGNALS.items() if signal.default}
    return {name: SIGNALS.find(name) for name in ([names] if isinstance(names, str) else names)}


def search(lookup: Lookup, words: Sequence[str], page: Page, signals: dict[str, Signal], floor: float = FLOOR) -> list[Hit]:
    """Find the best features for a query. Ties are ordered by id.

    The score is a noisy or: 1 - the product over the signals of 1 - weight * value. It grows with each signal.

    Args:
        lookup: the query in the database.
        words: the words of the query, from :func:`feature_db.search.query.query_words`.
        page: which of them, and in which order.
        signals: the signals to combine, by name.
        floor: leave out features with a lower score.
    """
    return fused(lookup, list(_parts(lookup, words, signals)), page, floor)


def fused(lookup: Lookup, parts: Sequence[tuple[Scores, float]], page: Page, floor: float) -> list[Hit]:
    """The best chosen features from evidence, each part with its weight, combined as :func:`search` says."""
    rest: dict[int, NDArray[np.float64]] = {}
    for scores, weight in parts:
        if not len(scores.features):
            continue
        size = max(int(scores.features.max()) + 1, len(rest.get(scores.sae, ())))
        of_sae = rest.setdefault(scores.sae, np.ones(size))
        if len(of_sae) < size:
            rest[scores.sae] = of_sae = np.concatenate([of_sae, np.ones(size - len(of_sae))])
        of_sae[scores.features] *= 1 - weight * scores.values
    best = _best(lookup, rest, floor)
    if page.order is None:
        chosen = list(islice(best, page.offset, page.offset + page.k))
    else:
        every = list(best)
        ids, scores_of = (np.array([each[column] for each in every]) for column in (0, 1))
        chosen = [every[i] for i in page.of(lookup.db, ids, scores_of)]
    return [_hit(lookup, feature, score, _reasons(parts, *divmod(feature, FEATURES_PER_SAE))) for feature, score in chosen]


def _parts(lookup: Lookup, words: Sequence[str], signals: dict[str, Signal]) -> Iterator[tuple[Scores, float]]:
    """What the signals say, each with its weight: one part for a signal and dictionary."""
    for matches, weight in _of_words(lookup, words, signals):
        yield from ((scores, weight) for scores in _scores(matches))
    for signal in (signal for signal in signals.values() if signal.whole):
        found = signal.find(lookup)
        yield from ((scores, signal.weight) for scores in (_scores(found) if isinstance(found, Mapping) else found))


def _of_words(
    lookup: Lookup, words: Sequence[str], signals: dict[str, Signal]
) -> Iterator[tuple[dict[int, tuple[float, Callable[[], str]]], float]]:
    """Values by feature of the signals that take single words, combined over the words of the query; and their weights."""
    found, n_words = _by_words(lookup, words, signals)
    by_signal: dict[str, dict[int, _Reason]] = defaultdict(dict)
    for feature, matches in found.items():
        for name, of in matches.items():
            best = max(of, key=lambda each: each[0] * each[1].value)[1].why
            by_signal[name][feature] = (_together(of, n_words), lambda best=best: best)  # type: ignore[misc]
    for name, values in by_signal.items():
        yield values, signals[name].weight


def _by_words(lookup: Lookup, words: Sequence[str], signals: dict[str, Signal]) -> tuple[_Found, int]:
    """Matches of the signals that take single words, and the number of words with any match."""
    each = []
    for one in map(lookup.of, words):
        matches = {name: signal.find(one) for name, signal in signals.items() if not signal.whole}
        if any(matches.values()):
            each.append((one.rarity, matches))
    total = sum(rarity for rarity, _ in each)
    found: _Found = defaultdict(lambda: defaultdict(list))
    for rarity, matches in each:
        for name, by_feature in matches.items():
            assert isinstance(by_feature, Mapping), f"the signal {name} takes words and returns arrays"
            for feature, match in by_feature.items():
                found[feature][name].append((rarity / total, match))
    return found, len(each)


def _scores(matches: Mapping[int, Match | _Reason]) -> Iterator[Scores]:
    """Matches by feature id as arrays, one for each dictionary."""
    by_sae: dict[int, list[int]] = defaultdict(list)
    for feature in sorted(matches):
        by_sae[feature // FEATURES_PER_SAE].append(feature)
    for sae, features in by_sae.items():
        values = np.array([matches[feature][0] for feature in features], np.float64)

        def why(number: int, sae: int = sae) -> str:
            text = matches[feature_id(sae, number)][1]
            return text if isinstance(text, str) else text()

        yield Scores(sae, np.array(features, np.int64) % FEATURES_PER_SAE, values, why)


def _best(lookup: Lookup, rest: Mapping[int, NDArray[np.float64]], floor: float) -> Iterator[tuple[int, float]]:
    """Ids and scores of the chosen features, the best first.

    The filter is applied to the features in the order of their scores, a chunk at a time, so it costs little where many pass.
    """
    ids, scores = [], []
    for sae, of_sae in rest.items():
        numbers = np.flatnonzero(1 - of_sae > 0)
        ids.append(numbers + feature_id(sae, 0))
        scores.append(np.round(1 - of_sae[numbers], 6))
    every, score = (np.concatenate(each) if each else np.zeros(0) for each in (ids, scores))
    enough = score >= floor
    every, score = every[enough], score[enough]
    size = _CHUNK
    for group in _groups(score):
        order = group[np.lexsort((every[group], -score[group]))]
        start = 0
        while start < len(order):
            chunk = order[start : start + size]
            allowed = lookup.allowed(every[chunk].astype(np.int64).tolist())
            yield from ((int(every[i]), float(score[i])) for i in chunk.tolist() if int(every[i]) in allowed)
            start, size = start + size, size * 4


def _groups(score: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """Indices of the best scores, then of all others: most searches need no other, and sorting all takes long."""
    if len(score) <= _FIRST:
        yield np.arange(len(score))
        return
    least = np.partition(score, len(score) - _FIRST)[len(score) - _FIRST]
    yield np.flatnonzero(score >= least)
    yield np.flatnonzero(score < least)


def _reasons(parts: Iterable[tuple[Scores, float]], sae: int, number: int) -> list[tuple[float, str]]:
    """What each signal says about a feature, with its part in the score."""
    found = []
    for scores, weight in parts:
        if scores.sae != sae:
            continue
        place = int(np.searchsorted(scores.features, number))
        if place < len(scores.features) and scores.features[place] == number and scores.values[place] > 0:
            found.append((weight * float(scores.values[place]), scores.why))
    most = max((part for part, _ in found), default=0.0)
    return [(part, why(number)) for part, why in found if part >= 0.2 * most]


def _hit(lookup: Lookup, feature: int, score: float, reasons: list[tuple[float, str]]) -> Hit:
    db = lookup.db
    found = db.execute("SELECT sae, number, density FROM feature WHERE id = ?", (feature,)).fetchone()
    sae, number, density = stored.row("a feature", found, INT, INT, REAL)
    ordered = list(dict.fromkeys(why for _, why in sorted(reasons, key=lambda reason: (-reason[0], reason[1]))))
    return Hit(
        lookup.dictionaries[sae], number, round(min(score, 1.0), 6), label_of(db, feature), density, "; ".join(ordered[:3])
    )


def _together(words: list[tuple[float, Match]], n_words: int) -> float:
    """Combine one signal's matches of all words of a query.

    Matches add up, because a feature of a concept spreads over the words of the concept. The sum is weighted by the share of the
    query that these words make up.
    """
    added = sum(n_words * share * match.value for share, match in words)
    return min(added, 1.0) * sum(share for share, _ in words)
