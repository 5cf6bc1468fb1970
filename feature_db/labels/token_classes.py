"""Classes of tokens by their looks, their place in the text, the grammar of their word, and the language of the text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from feature_db.meaning.languages import LANGUAGES

_LOOKS = {
    "capitalised": "capitalised words",
    "upper": "words in capitals",
    "digits": "digits",
    "punctuation": "punctuation",
    "quote": "quotation marks",
    "newline": "line breaks",
    "first_piece": "first pieces of longer words",
    "later_piece": "later pieces of words",
    "first_token": "the first token of a context",
    "sentence_start": "first words of sentences",
    "name": "capitalised words inside of sentences",
    "year": "numbers of four digits",
    "noun": "nouns",
    "plural": "plural nouns",
    "verb": "verbs",
    "past": "verbs in the past tense",
    "third_person": "verbs in the third person singular",
    "ing": "verbs that end in -ing",
    "adjective": "adjectives",
    "adverb": "adverbs",
    "function": "function words",
}
BIT = {name: 1 << i for i, name in enumerate(_LOOKS)}
"""The bits of a token that say to which classes it belongs."""
LANGUAGE_SHIFT = 24
"""The bits from here on are the number of the text's language, from 1; 0 for none."""
CLASSES = {**_LOOKS, **{name: f"{name.capitalize()} text" for name in LANGUAGES}}
"""Name of each class, and the tokens in it as a label says them. Those with bits come first, then languages."""


def in_class(bits: NDArray[np.int32], name: str) -> NDArray[np.bool_]:
    """Which tokens with these bits are in a class of :data:`CLASSES`."""
    if name in BIT:
        return (bits & BIT[name]).astype(bool)
    return bits >> LANGUAGE_SHIFT == list(CLASSES).index(name) - len(BIT) + 1


def counts(bits: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many tokens with these bits are in each class, (classes,)."""
    looks = ((bits[:, None] >> np.arange(len(BIT))) & 1).sum(0)
    return np.concatenate([looks, np.bincount(bits >> LANGUAGE_SHIFT, minlength=len(LANGUAGES) + 1)[1:]])


CALLED = {
    "capitalised": ("capital letter", "uppercase letter", "upper case letter", "capitalised", "capitalized", "capitalization"),
    "upper": ("capitals", "uppercase", "upper case", "all caps"),
    "digits": ("digit", "number", "numeral"),
    "punctuation": ("punctuation",),
    "quote": ("quotation mark", "quote", "speech mark", "quotation"),
    "newline": ("line break", "newline", "new line", "paragraph"),
    "first_piece": ("first piece", "prefix"),
    "later_piece": ("later piece", "last piece", "suffix", "ending word"),
    "first_token": ("first token", "start text", "beginning text", "start document", "beginning document"),
    "sentence_start": ("sentence start", "sentence begin", "sentence beginning", "first word sentence", "new sentence"),
    "name": ("name", "proper noun"),
    "year": ("year", "date"),
    "noun": ("noun",),
    "plural": ("plural", "plural noun"),
    "verb": ("verb",),
    "past": ("past", "past tense", "past tense verb", "verb past"),
    "third_person": ("third person", "third person singular", "third person verb"),
    "ing": ("ing", "ing verb", "gerund", "present participle", "verb ing"),
    "adjective": ("adjective",),
    "adverb": ("adverb",),
    "function": ("function word", "stop word", "grammatical word"),
    **{name: (name,) for name in LANGUAGES},
}
"""What people call each class: the words of a name in any order, nouns in the singular."""
