"""Signals from the meaning of words: which features fire on words that the query stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from feature_db.meaning.word_sets import LEXICONS, Asked, forms
from feature_db.search.lookup import Lookup, Scores
from feature_db.search.query import query_words

_NOISE, _CERTAIN = 0.1, 0.8
"""Cosines that count as 0 and as 1: any two words have something in common."""
_SHOWN = 3
NEAR = ("near", "members")
"""Lexicons of words that are near in meaning. The words of the other lexicons are certain."""


def asked(lookup: Lookup) -> Iterator[tuple[int, Asked]]:
    """The query about each dictionary, by the dictionary's id."""
    if lookup.profiles is None:
        return
    for sae in lookup.chosen.saes:
        profile, embedder = lookup.profiles(sae)
        if sae not in lookup.likeness:
            words = query_words(lookup.query)
            texts = forms(words[0]) if len(words) == 1 else [lookup.query.casefold()]
            lookup.likeness[sae] = profile.likeness(texts, embedder)
        yield sae, Asked(lookup.query, sae, profile, lookup.db, lookup.likeness[sae])


def meaning(lookup: Lookup) -> Iterator[Scores]:
    """Features whose words are near to the query on the whole: the cosine of their mean embedding with that of the query."""
    for sae, query in asked(lookup):
        cosine_F = query.profile.meaning(query.likeness_V)
        value_F = np.clip((cosine_F - _NOISE) / (_CERTAIN - _NOISE), 0, 1)
        yield Scores(sae, np.arange(len(value_F)), value_F, partial(_nearest, query))


def word_sets(lexicons: Callable[[str], bool], lookup: Lookup) -> Iterator[Scores]:
    """Features that detect a set of words that the query stands for, by F1.

    Args:
        lexicons: whether to use the lexicon of this name.
    """
    for sae, query in asked(lookup):
        for name, lexicon in LEXICONS.items():
            if not lexicons(name):
                continue
            for words in lexicon(query):
                answer = query.profile.answer(words)
                yield Scores(
                    sae, answer.features, answer.f1, partial(_fires_on, query, frozenset(words.words.tolist()), words.why)
                )


def _nearest(query: Asked, feature: int) -> str:
    words, shares = query.profile.words_of(feature)
    weights = shares * query.likeness_V[words]
    best = [word for word in words[np.argsort(-weights, kind="stable")[:_SHOWN]].tolist() if query.likeness_V[word] > 0]
    return f"{_quoted(query, best)} and its other words are near in meaning"


def _fires_on(query: Asked, wanted: frozenset[int], why: str, feature: int) -> str:
    words, shares = query.profile.words_of(feature)
    among = np.array([word in wanted for word in words.tolist()], bool)
    share = float(shares[among].sum())
    best = words[among][np.argsort(-shares[among], kind="stable")[:_SHOWN]].tolist()
    return f"fires on {_quoted(query, best)} ({share:.0%} of its activation), {why}"


def _quoted(query: Asked, words: list[int]) -> str:
    return ", ".join(f"'{text}'" for text in query.texts(words))
