"""Concepts that genres other than their own speak of in passing: there too their words are labelled."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from saekit.lab.concepts import CONCEPTS
from saekit.lab.registry import Writer
from saekit.lab.splits import Split
from saekit.lab.text import Span, Text
from saekit.lab.words import stories_english as en

# All words of these mean the concept in every genre, but for the homonyms below.
_WHOLE = (
    "pronoun_he",
    "pronoun_she",
    "verb_singular",
    "profession",
    "biased_profession",
    "he_profession",
    "she_profession",
    "neutral_profession",
    "color",
    "size",
    "place",
    "public_place",
    "family",
    "child",
    "season",
    "weekday",
    "time_of_day",
    "body_part",
    "instrument",
    "currency",
    "language_name",
    "farewell",
)
# Of these only some do: other words have other meanings as well.
_SOME = {
    "any_color": en.COLOURS,
    "happiness": ["happy", "smiled", "delighted"],
    "verb_plural": ["are", "were"],
}
# These open a question where they are capitalised; in a sentence they mostly open a relative clause.
_QUESTION_WORDS = ("What", "Which", "Where", "Who", "How")

# A genre's words that mean something else in it. The stories in other languages know their own words, and borrow instruments.
_HOMONYMS = {"safety": {"safe"}, "toxicity": {"star", "What"}, "translations": {"sol"}}
_FOREIGN = {"french_stories", "german_stories", "spanish_stories"}

_Table = dict[str, tuple[str, ...]]


@cache
def _concepts_by_word() -> _Table:
    found: _Table = {}

    def enter(text: str, *concepts: str) -> None:
        for form in dict.fromkeys((text, text[0].upper() + text[1:])):
            found[form] = tuple(dict.fromkeys((*found.get(form, ()), *concepts)))

    for concept in _WHOLE:
        for text in CONCEPTS[concept].words:
            enter(text, concept)
    for concept, words in _SOME.items():
        for text in words:
            enter(text, concept)
    for text in _QUESTION_WORDS:
        enter(text, "question_word")
    for topic, (_, rows) in en.TOPICS.items():
        for row in rows:
            for text in CONCEPTS[row[0]].words:
                enter(text, topic, row[0])
        for text in en.ELSEWHERE.get(topic, "").split():
            enter(text, topic)
    return found


def _table(genre: str, by_word: _Table) -> _Table:
    if genre in _FOREIGN:
        return {text: ("instrument",) for text, concepts in by_word.items() if "instrument" in concepts}
    return {text: concepts for text, concepts in by_word.items() if text not in _HOMONYMS.get(genre, ())}


_WORD = re.compile(r"\w+")


def labelling(writer: Writer, genre: str) -> Writer:
    """`writer` of `genre`, whose texts have these labels as well, each once."""
    table = _table(genre, _concepts_by_word())

    def write(rng: Random, split: Split) -> Text:
        text = writer(rng, split)
        known = set(text.spans)
        found = [
            span
            for match in _WORD.finditer(text.text)
            for concept in table.get(match[0], ())
            if (span := Span(match.start(), match.end(), concept)) not in known
        ]
        return Text(text.text, text.spans + tuple(found))

    return write
