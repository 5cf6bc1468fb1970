"""Relations of the world's countries and people, and the phrasings that state them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.text import Text, fill, word
from saekit.lab.words.world import COUNTRIES, PEOPLE, SPORTS, Country, Person, subject, thing

Subject = Country | Person

_QUESTION_WORDS = ("What", "Which", "Where", "which")
_RELATION_NOUNS = (
    "capital",
    "language",
    "currency",
    "money",
    "river",
    "continent",
    "country",
    "job",
    "profession",
    "instrument",
    "sport",
)
words_concept("question_word", "a word that opens a question", ("What", "Which", "Where", "Who", "How"))
words_concept("relation_noun", "the noun that says what is told of a subject", _RELATION_NOUNS)

# Slots that every template may have in addition to its own: words that carry a label wherever they stand.
STATIC: dict[str, Text | str] = {
    **{text: word(text, "question_word") for text in _QUESTION_WORDS},
    **{text: word(text, "relation_noun") for text in _RELATION_NOUNS},
}


@dataclass(frozen=True)
class Relation:
    """One relation of a kind of subject, with its phrasings.

    Templates hold {s}, the subject, and {v}, the value; a question's template ends with its answer. `heldout` phrasings are
    never in a training document. `invertible`: no two subjects share a value, so that it may be asked backwards.
    """

    name: str
    subjects: tuple[Subject, ...]
    value: Callable[[Subject], str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    inverse_questions: tuple[str, ...]
    heldout_statements: tuple[str, ...]
    heldout_questions: tuple[str, ...]

    @cached_property
    def values(self) -> tuple[str, ...]:
        """All values, each once."""
        return tuple(dict.fromkeys(self.value(of) for of in self.subjects))

    def other_value(self, rng: Random, true: str) -> str:
        """A value that is not `true`."""
        while (value := rng.choice(self.values)) == true:
            pass
        return value


def _field(name: str) -> Callable[[Subject], str]:
    def value(of: Subject) -> str:
        found: str = getattr(of, name)
        return found

    return value


def _relation(
    name: str,
    subjects: tuple[Subject, ...],
    statements: tuple[str, ...],
    questions: tuple[str, ...],
    heldout: tuple[tuple[str, ...], tuple[str, ...]],
    inverse: tuple[str, ...] = (),
    of: str | None = None,
) -> Relation:
    return Relation(name, subjects, _field(of or name), statements, questions, inverse, *heldout)


_MUSICIANS = tuple(person for person in PEOPLE if person.plays not in SPORTS)
_ATHLETES = tuple(person for person in PEOPLE if person.plays in SPORTS)

RELATIONS = {
    relation.name: relation
    for relation in (
        _relation(
            "capital",
            COUNTRIES,
            (
                "The {capital} of {s} is {v}.",
                "The {capital} city of {s} is {v}.",
                "The {capital} of {s} is called {v}.",
                "In {s}, the {capital} is {v}.",
                "{s} is the {country} whose {capital} is {v}.",
                "{s} is a {country} and its {capital} is {v}.",
                "{v} is the {capital} of {s}.",
                "The {country} with the {capital} {v} is {s}.",
            ),
            (
                "{What} is the {capital} of {s}? {v}.",
                "{Which} city is the {capital} of {s}? {v}.",
                "{What} is the {capital} city of {s}? {v}.",
            ),
            (
                ("The {capital} city of {s} is called {v}.", "In {s}, the {capital} city is {v}."),
                ("{Which} city is the {capital} city of {s}? {v}.", "In {s}, {which} city is the {capital}? {v}."),
            ),
            ("{Which} {country} has the {capital} {v}? {s}.", "{What} is the {country} with the {capital} {v}? {s}."),
        ),
        _relation(
            "language",
            COUNTRIES,
            (
                "The {language} of {s} is {v}.",
                "The main {language} of {s} is {v}.",
                "People in {s} speak {v}.",
                "In {s}, people speak {v}.",
                "In {s}, the main {language} is {v}.",
                "The {language} of people in {s} is {v}.",
                "{v} is the {language} of {s}.",
                "{v} is the main {language} in {s}.",
            ),
            (
                "{What} is the {language} of {s}? {v}.",
                "{Which} {language} do people in {s} speak? {v}.",
                "{What} is the main {language} of {s}? {v}.",
            ),
            (
                ("In {s}, the {language} is {v}.", "The main {language} of people in {s} is {v}."),
                ("In {s}, {which} {language} do people speak? {v}.", "{What} is the main {language} in {s}? {v}."),
            ),
        ),
        _relation(
            "currency",
            COUNTRIES,
            (
                "The {currency} of {s} is the {v}.",
                "The {money} of {s} is the {v}.",
                "The {currency} of {s} is called the {v}.",
                "People in {s} pay with the {v}.",
                "In {s}, people pay with the {v}.",
                "In {s}, the {currency} is the {v}.",
                "The {v} is the {currency} of {s}.",
                "The {v} is the {money} of {s}.",
            ),
            (
                "{What} is the {currency} of {s}? The {v}.",
                "{What} is the {money} of {s}? The {v}.",
                "{Which} {currency} do people in {s} pay with? The {v}.",
            ),
            (
                ("In {s}, the {money} is the {v}.", "The {money} of {s} is called the {v}."),
                ("In {s}, {which} {currency} do people pay with? The {v}.", "{What} is the {money} of people in {s}? The {v}."),
            ),
        ),
        _relation(
            "river",
            COUNTRIES,
            (
                "A {river} of {s} is the {v}.",
                "A {river} in {s} is the {v}.",
                "A {river} of {s} is called the {v}.",
                "In {s}, there is a {river} called the {v}.",
                "{s} is the {country} of the {river} {v}.",
                "The {v} is a {river} in {s}.",
                "The {river} {v} flows through {s}.",
                "The {country} of the {river} {v} is {s}.",
            ),
            (
                "{Which} {river} flows through {s}? The {v}.",
                "{Which} {river} is in {s}? The {v}.",
                "{What} is a {river} of {s} called? The {v}.",
            ),
            (
                ("A {river} in {s} is called the {v}.", "In {s}, a {river} is called the {v}."),
                ("In {s}, {which} {river} is there? The {v}.", "{What} is a {river} in {s} called? The {v}."),
            ),
            ("{Which} {country} has the {river} {v}? {s}.", "{What} is the {country} of the {river} {v}? {s}."),
        ),
        _relation(
            "continent",
            COUNTRIES,
            (
                "The {continent} of {s} is {v}.",
                "{s} is in {v}.",
                "{s} lies in {v}.",
                "{s} is a {country} in {v}.",
                "{s} is on the {continent} of {v}.",
                "{s} is a part of {v}.",
                "The {country} of {s} lies in {v}.",
                "On the {continent} of {v} lies {s}.",
            ),
            (
                "{What} is the {continent} of {s}? {v}.",
                "{Which} {continent} is {s} in? {v}.",
                "On {which} {continent} is {s}? {v}.",
            ),
            (
                ("{s} lies on the {continent} of {v}.", "The {country} of {s} is a part of {v}."),
                ("{Which} {continent} is the {country} of {s} in? {v}.", "{s} is on {which} {continent}? {v}."),
            ),
        ),
        _relation(
            "born",
            PEOPLE,
            (
                "{s} was born in {v}.",
                "{s} comes from {v}.",
                "{s} is from {v}.",
                "The {country} of {s} is {v}.",
                "The home {country} of {s} is {v}.",
                "The {country} where {s} was born is {v}.",
                "{s} was born in a {country} called {v}.",
                "{v} is the home {country} of {s}.",
            ),
            (
                "{Where} was {s} born? In {v}.",
                "In {which} {country} was {s} born? In {v}.",
                "{Which} {country} does {s} come from? From {v}.",
            ),
            (
                ("{s} comes from a {country} called {v}.", "The home {country} of {s} is called {v}."),
                ("In {which} {country} was the home of {s}? In {v}.", "{s} comes from {which} {country}? From {v}."),
            ),
        ),
        _relation(
            "profession",
            PEOPLE,
            (
                "{s} is a {v}.",
                "{s} works as a {v}.",
                "{s} has a {job} as a {v}.",
                "The {job} of {s} is to be a {v}.",
                "By {profession}, {s} is a {v}.",
                "Every day, {s} works as a {v}.",
                "For years, {s} has been a {v}.",
                "For a {job}, {s} is a {v}.",
                "{s} is a {v} by {profession}.",
            ),
            (
                "{What} is the {profession} of {s}? A {v}.",
                "{What} is the {job} of {s}? A {v}.",
                "{What} does {s} work as? A {v}.",
            ),
            (
                ("The {profession} of {s} is to be a {v}.", "For a {job}, {s} works as a {v}."),
                ("{What} does {s} work as by {profession}? A {v}.", "{What} is {s} by {profession}? A {v}."),
            ),
        ),
        *(
            _relation(
                name,
                subjects,
                (
                    f"{{s}} plays {the}{{v}}.",
                    f"{{s}} likes to play {the}{{v}}.",
                    f"{{s}} can play {the}{{v}}.",
                    f"Every day, {{s}} plays {the}{{v}}.",
                    f"For years, {{s}} has played {the}{{v}}.",
                    f"At home, {{s}} plays {the}{{v}}.",
                    f"The {{{name}}} of {{s}} is {the}{{v}}.",
                    f"The {{{name}}} that {{s}} plays is {the}{{v}}.",
                ),
                (
                    f"{{Which}} {{{name}}} does {{s}} play? {{He}} plays {the}{{v}}.",
                    f"{{What}} is the {{{name}}} of {{s}}? It is {the}{{v}}.",
                    f"{{What}} does {{s}} like to play? {{He}} likes to play {the}{{v}}.",
                ),
                (
                    (f"Every day, {{s}} likes to play {the}{{v}}.", f"The {{{name}}} that {{s}} can play is {the}{{v}}."),
                    (
                        f"{{Which}} {{{name}}} does {{s}} like to play? {{He}} plays {the}{{v}}.",
                        f"{{What}} is the {{{name}}} that {{s}} plays? It is {the}{{v}}.",
                    ),
                ),
                of="plays",
            )
            for name, subjects, the in (("instrument", _MUSICIANS, "the "), ("sport", _ATHLETES, ""))
        ),
    )
}


@lru_cache(maxsize=1 << 16)
def say(template: str, of: Subject, value: str, *marks: str) -> Text:
    """`template` about the subject `of` with `value` (empty where the template has none), labelled.

    `marks` are further concepts of the value.
    """
    return fill(
        template,
        **STATIC,
        s=subject(of),
        v=thing(value).labelled(*marks) if value else "",
        He="She" if isinstance(of, Person) and of.female else "He",
    )


def as_dialogue(question: str) -> str:
    """The template of a question with its answer, as documents hold it."""
    return "Question: " + question.replace("? ", "?\nAnswer: ")


def ends_in_value(template: str) -> bool:
    """Whether the value is the last word, so that the text before it asks for it."""
    return template.endswith("{v}.") and "{s}" in template


def before_value(template: str) -> str:
    """The template of a prompt: `template` up to its value."""
    return template[: template.index("{v}")].rstrip()
