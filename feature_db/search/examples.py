"""Ranks features by example texts: which features fire on these texts, and not on others.

The score of a feature is the mean of two F1s. Both count as many positive as negative texts.

- On the texts: a text counts as detected by the square root of the feature's activation there, as a share of its maximum.
  Negatives are the texts of the contrast, and random texts of the same length: the chance that a feature of density d fires on
  n tokens is 1 - (1 - d)^n.
- On their words: how well the feature detects the words that the positive texts share (:mod:`feature_db.search.shared_words`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.records import ExampleHit, IndexedSAE
from feature_db.search.lookup import Lookup
from feature_db.search.page import Page
from feature_db.search.reading import Fired, Text, fired
from feature_db.search.shared_words import Words, f1_score, shared
from feature_db.store.read import label_of
from feature_db.store.schema import feature_id
from saekit.pieces import joined
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

_RANDOM = 2
"""Random texts count as much as this number of negatives."""
_SHOWN = 3
_LONGEST = 3  # tokens on each side of one that may belong to its character: UTF-8 has up to four bytes
_LONG = 10_000
"""Tokens from which on a progress bar is shown."""


@dataclass(frozen=True)
class Contrast:
    """Texts that features are ranked by."""

    positives: Sequence[Text]
    negatives: Sequence[Text]


class _Candidates(NamedTuple):
    """Features that fire on a positive text and are chosen. Arrays are (F,)."""

    features: NDArray[np.int64]
    """Numbers, ascending."""
    density: NDArray[np.float64]
    mean: NDArray[np.float64]
    max: NDArray[np.float64]


class _Sums(NamedTuple):
    """Sums over texts, (F,) each."""

    n: int
    """Texts."""
    fires: NDArray[np.float64]
    """Texts on which the feature fires."""
    root: NDArray[np.float64]
    """Of the square root of the largest activation, as a share of the feature's maximum."""
    largest: NDArray[np.float64]
    """Of the largest activation."""


class Scored(NamedTuple):
    """How well features tell the positive texts from others, (F,) each."""

    on_texts: NDArray[np.float64]
    """F1 that counts the strength of activations; see the head of this module."""
    f1: NDArray[np.float64]
    """F1 of "the feature fires on the text"."""
    difference: NDArray[np.float64]
    """Mean of the largest activation on positive texts, minus that on negatives (without any: minus that expected on random
    texts)."""


def search_texts(
    lookup: Lookup, lm: LanguageModel, sae: SAE, indexed: IndexedSAE, texts: Contrast, page: Page
) -> list[ExampleHit]:
    """Features that fire on a positive text, the best first. Ties are ordered by number.

    Args:
        lookup: the database, with the filter.
        indexed: the dictionary `sae` as it is indexed.
    """
    every = [*texts.positives, *texts.negatives]
    total = sum(len(text.ids) for text in every)
    with track("running", total, subject="the examples", enabled=total > _LONG) as bar:
        found = fired(lm, sae, lm.site(indexed.site), every, bar)
    positives, negatives = found[: len(texts.positives)], found[len(texts.positives) :]
    candidates = _candidates(lookup, indexed, positives)
    n_tokens = float(np.mean([text.n_tokens for text in positives]))
    scored = _scored(_sums(positives, candidates), _sums(negatives, candidates), candidates, n_tokens)
    score = np.round((scored.on_texts + _on_words(lookup, indexed, texts, n_tokens)[candidates.features]) / 2, 6)
    chosen = page.of(lookup, candidates.features + feature_id(indexed.id, 0), score)
    return [
        ExampleHit(
            dictionary=indexed.dictionary,
            feature=int(candidates.features[f]),
            score=float(score[f]),
            label=label_of(lookup.db, feature_id(indexed.id, int(candidates.features[f]))),
            density=float(candidates.density[f]),
            why=_why(lm, texts, found, int(candidates.features[f]), float(candidates.max[f])),
            f1=round(float(scored.f1[f]), 6),
            auc=_auc(positives, negatives, int(candidates.features[f])) if negatives else None,
            difference=float(scored.difference[f]),
        )
        for f in chosen
    ]


def _candidates(lookup: Lookup, indexed: IndexedSAE, positives: Sequence[Fired]) -> _Candidates:
    numbers = np.unique(np.concatenate([np.zeros(0, np.int64), *(text.features for text in positives)]))
    ids = numbers + feature_id(indexed.id, 0)
    ids = ids[lookup.passes(ids)]
    numbers = ids[lookup.fulfil_rest(ids)] - feature_id(indexed.id, 0)
    arrays = lookup.features(indexed.id)
    return _Candidates(numbers, *(arrays.column(name, numbers) for name in ("density", "mean", "max")))


def _sums(texts: Sequence[Fired], candidates: _Candidates) -> _Sums:
    F = len(candidates.features)
    fires, root, largest = np.zeros(F), np.zeros(F), np.zeros(F)
    for text in texts:
        place = np.searchsorted(candidates.features, text.features)
        place[place == F] = 0
        known = candidates.features[place] == text.features if F else np.zeros(len(place), bool)
        place, value = place[known], text.largest[known].astype(np.float64)
        fires[place] += 1
        root[place] += np.sqrt(value / np.maximum(candidates.max[place], 1e-12))
        largest[place] += value
    return _Sums(len(texts), fires, root, largest)


def _scored(positive: _Sums, negative: _Sums, of: _Candidates, n_tokens: float) -> Scored:
    chance = 1 - (1 - np.minimum(of.density, 1)) ** n_tokens
    root_of_mean = np.sqrt(of.mean / np.maximum(of.max, 1e-12))
    weight = _RANDOM if negative.n else 1
    by_strength = (negative.root + weight * chance * root_of_mean) / (negative.n + weight)
    by_count = negative.fires / negative.n if negative.n else chance
    others = negative.largest / negative.n if negative.n else chance * of.mean
    return Scored(
        f1_score(np.minimum(positive.root / positive.n, 1), np.minimum(by_strength, 1)),
        f1_score(positive.fires / positive.n, by_count),
        positive.largest / positive.n - others,
    )


def _on_words(lookup: Lookup, indexed: IndexedSAE, texts: Contrast, n_tokens: float) -> NDArray[np.float64]:
    """(n_features,) F1 of each feature as a detector of the words that the positive texts share."""
    f1 = np.zeros(indexed.n_features)
    assert lookup.profiles is not None
    profile, _ = lookup.profiles(indexed.id)
    positives, negatives = (
        Words.of(lookup.db, indexed.id, profile, [text.words for text in each]) for each in (texts.positives, texts.negatives)
    )
    asked = shared(profile, positives, negatives, n_tokens, indexed.n_tokens)
    if asked is not None:
        answer = profile.answer(asked)
        f1[answer.features] = answer.f1
    return f1


def _auc(positives: Sequence[Fired], negatives: Sequence[Fired], feature: int) -> float:
    """Share of the pairs of a positive and a negative text in which the feature's activation is larger on the positive one."""
    above, below = (np.array([_largest(text, feature)[0] for text in texts]) for texts in (positives, negatives))
    below.sort()
    smaller, not_larger = (np.searchsorted(below, above, side) for side in ("left", "right"))
    return round(float((smaller + not_larger).mean() / (2 * len(below))), 6)


def _largest(text: Fired, feature: int) -> tuple[float, int]:
    """Largest activation of a feature on a text, and its token; (0, -1) where the feature does not fire."""
    place = int(np.searchsorted(text.features, feature))
    if place == len(text.features) or text.features[place] != feature:
        return 0.0, -1
    return float(text.largest[place]), int(text.places[place])


def _why(lm: LanguageModel, texts: Contrast, found: Sequence[Fired], feature: int, most: float) -> str:
    n, others = len(texts.positives), len(texts.negatives)
    peaks = [_largest(text, feature) for text in found]
    firing = [(value, text.ids, place) for (value, place), text in zip(peaks, texts.positives) if place >= 0]
    firing.sort(key=lambda each: -each[0])
    shown = (_character(lm, ids, place) for _, ids, place in firing)
    tokens = list(dict.fromkeys(each.strip() or each for each in shown))[:_SHOWN]
    share = sum(value for value, *_ in firing) / max(len(firing), 1) / max(most, 1e-12)
    on = ", ".join(f"'{token}'" for token in tokens)
    said = f"fires on {len(firing)} of {n} texts (on {on}) at {share:.0%} of its maximum"
    if others:
        said += f", and on {sum(place >= 0 for _, place in peaks[n:])} of the {others} others"
    return said


def _character(lm: LanguageModel, ids: Sequence[int], place: int) -> str:
    """The token at a place, or all of the character that it is a part of."""
    start = max(place - _LONGEST, 0)
    pieces = joined(lm.token_strings(ids[start : place + _LONGEST + 1]))
    return next(piece.text for piece in pieces if piece.start <= place - start < piece.stop)
