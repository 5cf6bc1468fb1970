"""Signals from the meaning of words: which features fire on words that the query stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.meaning.embedders import Embedder
from feature_db.meaning.parts_of_speech import is_word
from feature_db.meaning.profile import WordSet
from feature_db.meaning.word_sets import LEXICONS, Asked, forms
from feature_db.search.lookup import Lookup, Scores
from feature_db.search.query import WORD, query_words

_NOISE, _CERTAIN = 0.1, 0.8
"""Cosines that count as 0 and as 1: any two words have something in common."""
_STEEPNESS, _EVEN = 10.0, 0.42
"""Of the curve of :func:`chance`; at an F1 of _EVEN, the chance is even."""
_SHOWN = 3
NEAR = ("near", "members")
"""Lexicons of words that are near in meaning. The words of the other lexicons are certain."""


def asked(lookup: Lookup) -> Iterator[tuple[int, Asked]]:
    """The query about each dictionary, by the dictionary's id."""
    if lookup.profiles is None:
        return
    for sae in lookup.chosen.saes:
        profile, embedder = lookup.profiles(sae)
        if sae not in lookup.asked:
            query = Asked(lookup.query, sae, profile, lookup.db, np.zeros(len(profile.term_V), np.float32))
            texts = _known(query, embedder)
            query = replace(query, likeness_V=profile.likeness(texts, embedder)) if texts else query
            lookup.asked[sae] = query.without_opposites()
        yield sae, lookup.asked[sae]


def _known(query: Asked, embedder: Embedder) -> list[str]:
    """The query for an embedder: in singular and plural if it is one word, and without words that nobody knows.

    An embedder by pieces would find what is near to the pieces of an unknown word ("son" in "sonnix").
    """
    words = query_words(query.text)
    if not embedder.by_pieces:
        return forms(words[0]) if len(words) == 1 else [query.text.casefold()]
    unknown = {word for word in words if not is_word(word) and not len(query.find("text = ?", word)[0])}
    if len(words) == 1:
        return [] if unknown else forms(words[0])
    return (
        [] if unknown == set(words) else [WORD.sub(lambda found: "" if found[0] in unknown else found[0], query.text.casefold())]
    )


def meaning(lookup: Lookup) -> Iterator[Scores]:
    """Features whose words are near to the query on the whole: the cosine of their mean embedding with that of the query."""
    for sae, query in asked(lookup):
        cosine_F = query.profile.meaning(query.likeness_V)
        value_F = np.clip((cosine_F - _NOISE) / (_CERTAIN - _NOISE), 0, 1)
        yield Scores(sae, np.arange(len(value_F)), value_F, partial(_nearest, query))


def chance(f1: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Chance that a feature is right for a query, if it detects a set of words that the query stands for with this F1.

    A logistic curve, moved to 0 at 0. It follows the share of right features by F1 on the concepts of scripts/bench_search.py.
    """
    least = 1 / (1 + math.exp(_STEEPNESS * _EVEN))
    return (1 / (1 + np.exp(-_STEEPNESS * (f1 - _EVEN))) - least) / (1 - least)


def word_sets(lexicons: Callable[[str], bool], lookup: Lookup) -> Iterator[Scores]:
    """Features that detect a set of words that the query stands for, by the chance that they are right; it is less if
    the query says more than the name of the set.

    Args:
        lexicons: whether to use the lexicon of this name.
    """
    for sae, query in asked(lookup):
        sets = [words for name, lexicon in LEXICONS.items() if lexicons(name) for words in lexicon(query)]
        # A feature detects one of the sets: that it detects others like it, too, makes it no better.
        best_F, by_F = np.zeros(query.profile.n_features, np.float32), np.zeros(query.profile.n_features, np.uint8)
        for i, words in enumerate(sets):
            features, f1 = query.profile.answer(words)
            value = chance(f1) * words.share
            better = value > best_F[features]
            best_F[features[better]], by_F[features[better]] = value[better], i
        features = np.flatnonzero(best_F)
        yield Scores(sae, features, best_F[features], partial(_fires_on, query, sets, by_F))


def _nearest(query: Asked, feature: int) -> str:
    words, shares = query.profile.words_of(feature)
    weights = shares * query.likeness_V[words]
    best = [word for word in words[np.argsort(-weights, kind="stable")[:_SHOWN]].tolist() if query.likeness_V[word] > 0]
    return f"{_quoted(query, best)} and its other words are near in meaning"


def _fires_on(query: Asked, sets: Sequence[WordSet], by_F: NDArray[np.uint8], feature: int) -> str:
    words, shares = query.profile.words_of(feature)
    asked = sets[int(by_F[feature])]
    among = np.isin(words, asked.words)
    share = float(shares[among].sum())
    best = words[among][np.argsort(-shares[among], kind="stable")[:_SHOWN]].tolist()
    return f"fires on {_quoted(query, best)} ({share:.0%} of its activation), {asked.why}"


def _quoted(query: Asked, words: list[int]) -> str:
    return ", ".join(f"'{text}'" for text in query.texts(words))
