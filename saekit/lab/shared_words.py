"""Labels for words of a concept that occur in the documents of other genres."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from saekit.lab.concepts import CONCEPTS
from saekit.lab.registry import Writer
from saekit.lab.splits import Split
from saekit.lab.text import Span, Text
from saekit.lab.words import stories_english as en

# All words of these concepts have that meaning in every genre, except for the homonyms below.
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
# Of these concepts, only the listed words are unambiguous in every genre.
_SOME = {
    "any_color": en.COLOURS,
    "happiness": ["happy", "smiled", "delighted"],
    "verb_plural": ["are", "were"],
}
# A capitalised question word begins a question. In lower case it usually begins a relative clause.
_QUESTION_WORDS = ("What", "Which", "Where", "Who", "How")

# Words that have another meaning in a genre. The stories in foreign languages label their own words, except instruments.
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
    """A writer for `genre` that adds these labels to the texts of `writer`, without duplicates."""
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
