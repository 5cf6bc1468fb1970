"""Tokens and words that a feature is about: those it fires on, fires before, or has around its peaks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.labels.evidence import TermStat

if TYPE_CHECKING:
    from feature_db.index.accumulators import Accumulators, Hitters, Windows
    from feature_db.index.words import Words

KEEP = {"fires_word": 24, "fires_token": 12, "peaks": 8, "before": 8, "context": 16}
LEAST_SHARE = 0.005
LEAST_SCORE = {"before": 0.03, "peaks": 0.05, "context": 0.1}


class Stats(NamedTuple):
    """What is stored of one role: entries of a block of features, by feature and rank. Columns that a role lacks are None."""

    role: str
    feature: NDArray[np.int64]
    """Counted from the beginning of the block."""
    rank: NDArray[np.int64]
    item: NDArray[np.integer]
    value: NDArray[np.float64]
    rate: NDArray[np.float64] | None
    peak: NDArray[np.float64] | None
    hits: NDArray[np.int64] | None
    score: NDArray[np.float64]

    def by_feature(self, n_features: int) -> list[list[TermStat]]:
        """The rows of each feature of the block."""
        columns = [[None] * len(self.feature) if each is None else each.tolist() for each in self[3:]]
        rows = list(map(_new_stat, zip(repeat(self.role), *columns)))
        begin = np.searchsorted(self.feature, np.arange(n_features + 1)).tolist()
        return [rows[start:stop] for start, stop in pairwise(begin)]


_new_stat = partial(tuple.__new__, TermStat)  # TermStat(*row) takes five times as long, and there are a hundred rows a feature


@dataclass
class Lexicon:
    """Occurrences of tokens and words in the corpus."""

    n_tokens: int
    token_count: NDArray[np.int64]
    word_count: NDArray[np.int64]
    word_tokens: NDArray[np.int64]
    """Tokens in the occurrences of each word."""

    @classmethod
    def of(cls, accumulators: Accumulators, words: Words) -> Lexicon:
        lengths = np.array([len(form) for form in words.forms], np.int64)
        spelled = np.bincount(words.form_word, weights=words.form_count * lengths, minlength=len(words.texts))
        return cls(accumulators.n_tokens, accumulators.token_count, words.counts(), spelled.astype(np.int64))


def strength(
    share: NDArray[np.float64], rate: NDArray[np.float64], expected_share: NDArray[np.float64], expected_rate: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How specific a feature is to a term, 0 to 1.

    It is the product of two excesses over a feature that fires at random with the same density: the share of the feature's
    activation that lies on the term, and the square root of the rate at which the term makes it fire. A feature that fires on
    half of all words is not specific to "happy", though it fires on each "happy". A feature whose activation lies on "happy" but
    misses most occurrences is about something narrower.
    """
    excess = np.clip((share - expected_share) / np.maximum(1 - expected_share, 1e-12), 0, 1)
    certain = np.clip((rate - expected_rate) / np.maximum(1 - expected_rate, 1e-12), 0, 1)
    return excess * np.sqrt(certain)


def fired(
    hitters: Hitters,
    role: str,
    accumulators: Accumulators,
    block: slice,
    occurrences: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> Stats:
    """Rank the terms that a block of features fires on.

    Args:
        hitters: the items that hold most of each feature's activation.
        role: `fires_word`, `fires_token` or `before`.
        accumulators: the other statistics of the pass.
        block: the features.
        occurrences: number of occurrences of each item in the corpus.
        tokens: number of tokens in those occurrences (for `before`: of tokens that precede them).
    """
    n = max(accumulators.n_tokens, 1)
    items, mass, total = hitters.item[block], hitters.mass[block], accumulators.moments.total[block, None]
    present = (items >= 0) & (mass > 0)
    item = np.where(present, items, 0)
    occurs = np.where(present, np.append(occurrences, 0)[item], 1)
    spelled = np.where(present, np.append(tokens, 0)[item], 1)
    share = mass / np.where(total > 0, total, 1)
    rate = hitters.hits[block] / occurs
    silent = np.log1p(-np.minimum(accumulators.moments.firing[block, None] / n, 1 - 1e-9))
    score = strength(share, rate, spelled / n, 1 - np.exp(silent * spelled / occurs))
    score[~present | (share < LEAST_SHARE) | (score < LEAST_SCORE.get(role, 0.0))] = -1
    best = np.lexsort((item, -score))[:, : KEEP[role]]
    columns: tuple[NDArray[Any], ...] = (items, share, rate, hitters.peak[block].astype(np.float64), hitters.tokens[block], score)
    ranked = [np.take_along_axis(column, best, 1) for column in columns]
    feature, rank = np.nonzero(ranked[-1] >= 0)
    chosen: list[Any] = [column[feature, rank] for column in ranked]
    return Stats(role, feature, rank, *chosen)


def in_examples(top: Windows, words: Words, lexicon: Lexicon, block: slice) -> list[Stats]:
    """Rank the words in the strongest examples of a block of features: at the peaks (`peaks`) and around them (`context`).

    `value` is the share of examples that have the word there. `score` is `value` minus the share expected in random windows of
    the same length. Words cut by the edge of a window do not count.
    """
    slots, length = top.tokens.shape[1:]
    filled = np.maximum(top.filled[block], 1)
    lengths = np.where(np.arange(slots) < top.filled[block, None], top.length[block], 0)
    feature, window, place = np.nonzero(np.arange(length) < lengths[..., None])
    tokens = top.tokens[block][feature, window, place].astype(np.int32)
    word, begins = words.look_up(tokens, place == 0)
    # The span that holds each window's peak.
    peaks = np.flatnonzero(place == top.offset[block][feature, window])
    at_peak = np.zeros(len(word), bool)
    at_peak[np.searchsorted(begins, peaks, side="right") - 1] = True
    found, n_words = [], max(len(words.texts), 1)
    for role, chances, in_corpus, there in (
        ("peaks", np.ones(len(filled)), lexicon.word_tokens, at_peak),
        ("context", lengths.sum(1) / filled, lexicon.word_count, ~at_peak),
    ):
        known = there & (word >= 0)
        shown = begins[known]
        # One number for each feature, word and window: sorting numbers is much faster than sorting rows.
        pair = feature[shown] * n_words + word[known]
        pairs, examples = np.unique(np.unique(pair * slots + window[shown]) // slots, return_counts=True)
        of, item = np.divmod(pairs, n_words)
        share = examples / filled[of]
        expected = 1 - np.exp(-in_corpus[item] / max(lexicon.n_tokens, 1) * chances[of])
        score = share - expected
        if role == "context":
            score[share < 2 * expected] = 0
        keep = np.flatnonzero((examples >= 2) & (score >= LEAST_SCORE[role]))
        keep = keep[np.lexsort((item[keep], -score[keep], of[keep]))]
        rank = np.arange(len(keep)) - np.searchsorted(of[keep], of[keep])
        best, rank = keep[rank < KEEP[role]], rank[rank < KEEP[role]]
        found.append(Stats(role, of[best], rank, item[best], share[best], None, None, examples[best], score[best]))
    return found
