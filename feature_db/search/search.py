"""Finds features by concept, without any hosted model: fuses the signals of :mod:`feature_db.search.signals`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from feature_db import arguments
from feature_db.records import Hit
from feature_db.search.lookup import Lookup, Match, Scores
from feature_db.search.page import Page
from feature_db.search.signals import SIGNALS, Signal
from feature_db.store import stored
from feature_db.store.read import label_of
from feature_db.store.schema import FEATURES_PER_SAE, feature_id
from feature_db.store.stored import INT, REAL

FLOOR = 0.01
"""Hits with a lower score are not shown. The score is the chance that a feature is right."""
_FIRST = 4096
_ROUNDED = 1e-6
_SPARSE = 16
"""Where fewer than one in so many features has evidence, the others are left out of the arithmetic."""


def chosen_signals(names: str | Sequence[str] | None) -> dict[str, Signal]:
    """The signals of these names; None: those that a search uses by default.

    Raises:
        ConfigError: one of them does not exist; the message names the nearest.
    """
    if names is None:
        return {name: signal for name, signal in SIGNALS.items() if signal.default}
    return {name: SIGNALS.find(name) for name in arguments.names(names, "by")}


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
    by_sae: dict[int, list[tuple[Scores, float]]] = defaultdict(list)
    for scores, weight in parts:
        if len(scores.features):
            by_sae[scores.sae].append((scores, weight))
    ids, found = [np.zeros(0, np.int64)], [np.zeros(0)]
    for sae, of_sae in by_sae.items():
        numbers, score = _noisy_or(of_sae, floor)
        ids.append(numbers + feature_id(sae, 0))
        found.append(score)
    chosen = best(lookup, np.concatenate(ids), np.concatenate(found), page)
    return [_hit(lookup, feature, score, _reasons(parts, *divmod(feature, FEATURES_PER_SAE))) for feature, score in chosen]


def _noisy_or(parts: Sequence[tuple[Scores, float]], floor: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers and scores of the features of one dictionary with a positive score of at least `floor`."""
    size = max(int(scores.features[-1]) for scores, _ in parts) + 1
    if _SPARSE * sum(len(scores.features) for scores, _ in parts) < size:
        numbers = np.unique(np.concatenate([scores.features for scores, _ in parts]))
        rest = np.ones(len(numbers))
        for scores, weight in parts:
            rest[np.searchsorted(numbers, scores.features)] *= 1 - weight * scores.values
    else:
        numbers, rest = None, np.ones(size)
        for scores, weight in parts:
            first, last = int(scores.features[0]), int(scores.features[-1])
            every = last - first + 1 == len(scores.features)  # a slice is faster than a list of all numbers
            rest[slice(first, last + 1) if every else scores.features] *= 1 - weight * scores.values
    enough = np.flatnonzero(rest < 1 - max(floor - _ROUNDED, 0))
    score = np.round(1 - rest[enough], 6)
    kept = enough[score >= floor]
    return kept if numbers is None else numbers[kept], score[score >= floor]


def _parts(lookup: Lookup, words: Sequence[str], signals: dict[str, Signal]) -> Iterator[tuple[Scores, float]]:
    """What the signals say, each with its weight: one part for a signal and dictionary."""
    yield from _of_words(lookup, words, signals)
    for signal in (signal for signal in signals.values() if signal.whole):
        yield from ((scores, signal.weight) for scores in _scores(signal.find(lookup)))


def _of_words(lookup: Lookup, words: Sequence[str], signals: dict[str, Signal]) -> Iterator[tuple[Scores, float]]:
    """Scores of the signals that take single words, combined over the words of the query; and their weights."""
    each: list[tuple[float, dict[str, list[Scores]]]] = []
    for one in map(lookup.of, words):
        found = {name: _scores(signal.find(one)) for name, signal in signals.items() if not signal.whole}
        if any(found.values()):
            each.append((one.rarity, found))
    total = sum(rarity for rarity, _ in each)
    for name in dict.fromkeys(name for _, found in each for name in found):
        by_sae: dict[int, list[tuple[float, Scores]]] = defaultdict(list)
        for rarity, found in each:
            for scores in found[name]:
                by_sae[scores.sae].append((rarity / total, scores))
        yield from ((_together(of_sae, len(each)), signals[name].weight) for of_sae in by_sae.values())


def _scores(found: Mapping[int, Match] | Iterable[Scores]) -> list[Scores]:
    """What a signal found, as arrays: one for each dictionary, none empty."""
    return list(_of_matches(found)) if isinstance(found, Mapping) else [scores for scores in found if len(scores.features)]


def _of_matches(matches: Mapping[int, Match]) -> Iterator[Scores]:
    by_sae: dict[int, list[int]] = defaultdict(list)
    for feature in sorted(matches):
        by_sae[feature // FEATURES_PER_SAE].append(feature)
    for sae, features in by_sae.items():
        values = np.array([matches[feature].value for feature in features], np.float64)
        numbers = np.array(features, np.int64) % FEATURES_PER_SAE
        yield Scores(sae, numbers, values, lambda number, sae=sae: matches[feature_id(sae, number)].why)  # type: ignore[misc]


def best(lookup: Lookup, ids: NDArray[np.int64], score: NDArray[np.float64], page: Page) -> list[tuple[int, float]]:
    """Ids and scores of the chosen features on a page, from those that were found. Ties are ordered by id.

    The filter is applied to the features with the best scores. Only where too few of them pass, it is applied to all others.
    """
    wanted, end = None if page.order else page.end, page.end
    kept: list[NDArray[np.int64]] = []
    for some in _first_and_rest(score, len(score) if wanted is None else max(_FIRST, 2 * end)):
        some = some[lookup.passes(ids[some])]
        if len(some) > _FIRST:
            some = some[lookup.may_fulfil_rest(ids[some])]
        for group in (
            _groups(score, some, max(_FIRST // 8, 1) if lookup.chosen.rest else _FIRST) if wanted is not None else [some]
        ):
            order = group[np.lexsort((ids[group], -score[group]))]
            kept.append(order[lookup.fulfil_rest(ids[order])])
            if wanted is not None and sum(map(len, kept)) >= wanted:
                break
        if wanted is not None and sum(map(len, kept)) >= wanted:
            break
    found = np.concatenate([np.zeros(0, np.int64), *kept])
    shown = found[page.of(lookup, ids[found], score[found])]
    return list(zip(ids[shown].tolist(), score[shown].tolist()))


def _first_and_rest(score: NDArray[np.float64], n: int) -> Iterator[NDArray[np.int64]]:
    """Indices of about n of the best scores, then of all others. Equal scores are not parted."""
    if len(score) <= n:
        yield np.arange(len(score))
        return
    least = np.partition(score, len(score) - n)[len(score) - n]
    yield np.flatnonzero(score >= least)
    yield np.flatnonzero(score < least)


def _groups(score: NDArray[np.float64], among: NDArray[np.int64], n: int) -> Iterator[NDArray[np.int64]]:
    """The indices `among`, those of the best scores first, in groups that grow. Equal scores are not parted."""
    while len(among) > n:
        first, rest = (among[part] for part in _first_and_rest(score[among], n))
        yield first
        among, n = rest, n * 8
    yield among


def _reasons(parts: Iterable[tuple[Scores, float]], sae: int, number: int) -> list[tuple[float, str]]:
    """What each signal says about a feature, with its part in the score."""
    found = [(weight * scores.value(number), scores.why) for scores, weight in parts if scores.sae == sae]
    most = max((part for part, _ in found), default=0.0)
    return [(part, why(number)) for part, why in found if part > 0 and part >= 0.2 * most]


def _hit(lookup: Lookup, feature: int, score: float, reasons: list[tuple[float, str]]) -> Hit:
    db = lookup.db
    found = db.execute("SELECT sae, number, density FROM feature WHERE id = ?", (feature,)).fetchone()
    sae, number, density = stored.row("a feature", found, INT, INT, REAL)
    ordered = list(dict.fromkeys(why for _, why in sorted(reasons, key=lambda reason: (-reason[0], reason[1]))))
    return Hit(
        lookup.dictionaries[sae], number, round(min(score, 1.0), 6), label_of(db, feature), density, "; ".join(ordered[:3])
    )


def _together(words: list[tuple[float, Scores]], n_words: int) -> Scores:
    """Combine what one signal says about the features of one dictionary for the words of a query, each with its share.

    Matches add up, because a feature of a concept spreads over the words of the concept. The sum is weighted by the share of the
    query that these words make up.
    """
    numbers = np.unique(np.concatenate([scores.features for _, scores in words]))
    added, shares = np.zeros(len(numbers)), np.zeros(len(numbers))
    for share, scores in words:
        place = np.searchsorted(numbers, scores.features)
        added[place] += n_words * share * scores.values
        shares[place] += share

    def why(number: int) -> str:
        found = [(share * value, scores) for share, scores in words if (value := scores.value(number))]
        return max(found, key=lambda each: each[0])[1].why(number)

    return Scores(words[0][1].sae, numbers, np.minimum(added, 1.0) * shares, why)
