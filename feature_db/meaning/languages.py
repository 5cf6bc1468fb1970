"""The language of each part of a text, by the frequent words of languages (stopwords-iso)."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

LANGUAGES = {
    "arabic": "ar", "bulgarian": "bg", "chinese": "zh", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en",
    "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hebrew": "he", "hindi": "hi", "hungarian": "hu",
    "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "norwegian": "no", "persian": "fa", "polish": "pl",
    "portuguese": "pt", "romanian": "ro", "russian": "ru", "spanish": "es", "swedish": "sv", "thai": "th", "turkish": "tr",
    "ukrainian": "uk", "vietnamese": "vi",
}  # fmt: skip
"""English names of languages, and their ISO codes."""
_RADIUS = 16
"""Tokens on each side whose words tell the language of a token."""
_LEAST_SHARE, _LEAST_WORDS = 0.15, 1.0
"""At least this share of the words around a token, and this number of them, are frequent words of its language."""
_CLEARLY = 1.3
_ONE = 5040
"""The language has this many times as many of them as any other language."""


@cache
def frequent_words() -> dict[str, frozenset[str]]:
    """The frequent words of each language, case-folded."""
    import stopwordsiso

    return {name: frozenset(word.casefold() for word in stopwordsiso.stopwords(code)) for name, code in LANGUAGES.items()}


@cache
def _languages_of() -> dict[str, int]:
    found: dict[str, int] = {}
    for bit, words in enumerate(frequent_words().values()):
        for word in words:
            found[word] = found.get(word, 0) | 1 << bit
    return found


def languages_of(word: str) -> int:
    """The languages that have a frequent word, as bits in the order of :data:`LANGUAGES`."""
    return _languages_of().get(word, 0)


def detect(languages_N: NDArray[np.int64], is_word_N: NDArray[np.bool_], pieces: NDArray[np.int64]) -> NDArray[np.int8]:
    """The language of each of N tokens, by the words around it in its piece of text; -1 where none is clear.

    A word of n languages counts 1/n for each.

    Args:
        languages_N: bits of the languages of the word that begins at a token; 0 elsewhere.
        is_word_N: a word begins at the token.
        pieces: (P + 1,) first row of each piece, then N.
    """
    n = len(languages_N)
    found_N = np.full(n, -1, np.int8)
    present = np.flatnonzero([bool((languages_N >> bit & 1).any()) for bit in range(len(LANGUAGES))])
    if not len(present):
        return found_N
    bits_NL = (languages_N[:, None] >> present) & 1
    # Integers: sums of fractions would depend on where the block of tokens begins.
    weight_NL = bits_NL * (_ONE // np.maximum(bits_NL.sum(1, keepdims=True), 1))
    sums_NL = np.concatenate([np.zeros((1, len(present)), np.int64), weight_NL.cumsum(0)])
    words_N = np.concatenate([[0], is_word_N.cumsum()])
    rows, lengths = np.arange(n), np.diff(pieces)
    low = np.maximum(rows - _RADIUS, np.repeat(pieces[:-1], lengths))
    high = np.minimum(rows + _RADIUS + 1, np.repeat(pieces[1:], lengths))
    score_NL = np.concatenate([sums_NL[high] - sums_NL[low], np.zeros((n, 1), np.int64)], 1)  # of at least two languages
    best = score_NL.argmax(1)
    most, second = score_NL[rows, best] / _ONE, np.partition(score_NL, -2, axis=1)[:, -2] / _ONE
    clear = (most >= _LEAST_WORDS) & (most >= _LEAST_SHARE * (words_N[high] - words_N[low])) & (most >= _CLEARLY * second)
    found_N[clear] = present[best[clear]]
    return found_N
