"""Classes of English words by their grammar: closed classes by their members, open ones by the forms of words or their endings.

A label by class is measured on held-out documents like any other, so that an ending which misleads ("forest" is no superlative)
costs the label its score. To add a class, register a row of :data:`WORD_CLASSES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from feature_db.labels.token_classes import CLASSES
from feature_db.meaning.closed_classes import CLOSED_CLASSES
from feature_db.meaning.parts_of_speech import classes_of
from saekit.plugins import Registry


@dataclass(frozen=True)
class WordClass:
    """A row of :data:`WORD_CLASSES`."""

    phrase: str
    """The words, as a label says them."""
    holds: Callable[[str], bool]
    """Whether a case-folded word belongs to the class."""


def _listed(words: str) -> Callable[[str], bool]:
    return frozenset(words.split()).__contains__


def _grammatical(name: str) -> Callable[[str], bool]:
    return lambda word: name in classes_of(word)


def _ending(pattern: str, besides: str = "") -> Callable[[str], bool]:
    match, more = re.compile(pattern).fullmatch, frozenset(besides.split())
    return lambda word: word in more or match(word) is not None


_CLOSED = {
    "pronoun": "pronouns",
    "possessive": "possessive words",
    "article": "articles",
    "demonstrative": "demonstratives",
    "conjunction": "conjunctions",
    "preposition": "prepositions",
    "negation": "negations",
    "modal verb": "modal verbs",
    "auxiliary verb": "auxiliary verbs",
    "question word": "question words",
    "number word": "number words",
    "weekday": "days of the week",
    "month": "names of months",
}

WORD_CLASSES: Registry[WordClass] = Registry(
    "class of words",
    {
        **{name: WordClass(phrase, _listed(CLOSED_CLASSES[name])) for name, phrase in _CLOSED.items()},
        "past tense": WordClass(CLASSES["past"], _grammatical("past")),
        "ing": WordClass(CLASSES["ing"], _grammatical("ing")),
        "adverb": WordClass(CLASSES["adverb"], _grammatical("adverb")),
        "superlative": WordClass("superlatives", _ending(r"[a-z]{3,}est", "best worst most least")),
        "number": WordClass("numbers", _ending(r"[0-9][0-9,.]*")),
    },
)
"""Classes by the name that a rule stores."""
