"""The signal `says`: features that promote the tokens of the words that a query stands for. They steer towards it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays.feature_arrays import Entries
from feature_db.meaning.word_sets import LEXICONS, Asked
from feature_db.search.lookup import Lookup, Scores
from feature_db.search.meaning import asked

_MOST = 64
"""Words of a query that are looked up."""
_HALF = 2.0
"""Sum of scores at which a feature counts by one half: that of two words which it promotes most of all."""
_SHOWN = 3

Tokens = Mapping[int, tuple[float, str]]
"""Term ids of tokens, each with its weight and text."""


def says(lookup: Lookup) -> Iterator[Scores]:
    """Features by the sum s, over the words that the query stands for, of how far they promote the words' tokens: s / (s + 2).

    The words are those of the same lexicons that find what features fire on.
    """
    for sae, query in asked(lookup):
        tokens = _tokens(lookup, query)
        for of, found in lookup.entries("promotes", tokens):
            if of == sae and len(found.features):
                weight_N = found.scores * np.array([tokens[term][0] for term in found.terms.tolist()])
                features, place = np.unique(found.features, return_inverse=True)
                total_F = np.bincount(place, weight_N, len(features))
                yield Scores(sae, features, total_F / (total_F + _HALF), partial(_promoted, found, weight_N, tokens))


def words_meant(lookup: Lookup) -> dict[str, float]:
    """The words that a query stands for, of the corpus of the first dictionary that is searched, each with its weight, 0 to 1."""
    return next((_words(query) for _, query in asked(lookup)), {})


def _words(query: Asked) -> dict[str, float]:
    weights: dict[int, float] = {}
    for lexicon in LEXICONS.values():
        for words in lexicon(query):
            for word, weight in zip(words.words.tolist(), (words.weights * words.share).tolist()):
                weights[word] = max(weights.get(word, 0.0), weight)
    chosen = sorted(weights, key=lambda word: (-weights[word], word))[:_MOST]
    return dict(zip(query.texts(chosen), (weights[word] for word in chosen)))


def _tokens(lookup: Lookup, query: Asked) -> Tokens:
    tokens: dict[int, tuple[float, str]] = {}
    for text, weight in _words(query).items():
        for term, (share, token) in lookup.of(text).promoting.items():
            if share * weight > tokens.get(term, (0.0, ""))[0]:
                tokens[term] = share * weight, token
    return tokens


def _promoted(found: Entries, weight_N: NDArray[np.float64], tokens: Tokens, feature: int) -> str:
    own = np.flatnonzero(found.features == feature)
    best = own[np.argsort(-weight_N[own], kind="stable")].tolist()
    texts = [f"'{tokens[int(found.terms[n])][1]}'" for n in best[:_SHOWN]]
    more = f" and {len(best) - _SHOWN} more tokens" if len(best) > _SHOWN else ""
    return f"promotes {', '.join(texts)}{more}, which the query stands for"
