"""Sentences for the circuit of agreement: the number of a verb, with another noun between the subject and the verb."""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from saekit.lab.concepts import region_concept, words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.things import PERSON_PLURALS, PLACES, THING_PLURALS, place


class _Noun(NamedTuple):
    singular: str
    plural: str
    person: bool

    def form(self, plural: bool) -> str:
        return self.plural if plural else self.singular


NOUNS = tuple(_Noun(*forms, person=False) for forms in THING_PLURALS.items()) + tuple(
    _Noun(*forms, person=True) for forms in PERSON_PLURALS.items()
)
_PERSONS = tuple(noun for noun in NOUNS if noun.person)
_TO_BE = (("is", "are"), ("was", "were"))
_LIKING = (("likes", "like"), ("sees", "see"), ("remembers", "remember"))


def _plain(*texts: str) -> tuple[Text, ...]:
    return tuple(map(Text, texts))


# Predicates: the two forms of the verb and its possible complements, for things and for people.
_OF_THINGS = (
    *((verb, _plain("old", "new", "small", "big", "clean", "dirty")) for verb in _TO_BE),
    (("looks", "look"), _plain("old", "new", "clean", "dirty")),
)
_OF_PERSONS = (
    *((verb, _plain("tall", "young", "tired", "late")) for verb in _TO_BE),
    (("has", "have"), _plain("a bag", "a key", "a book", "a letter")),
    (("runs", "run"), tuple(fill("to the {place}", place=place(where)) for where in PLACES)),
    (("waits", "wait"), tuple(fill("at the {place}", place=place(where)) for where in PLACES)),
)
_NEAR = ("near", "behind", "beside")
HELD_OUT_PAIRS = 0.15

SINGULAR_VERBS = tuple(verb[0] for verb in (*_TO_BE, *_LIKING, *(p[0] for p in _OF_THINGS[2:] + _OF_PERSONS[2:])))
PLURAL_VERBS = tuple(verb[1] for verb in (*_TO_BE, *_LIKING, *(p[0] for p in _OF_THINGS[2:] + _OF_PERSONS[2:])))
words_concept("singular_subject", "a singular noun that the verb agrees with", [noun.singular for noun in NOUNS])
words_concept("plural_subject", "a plural noun that the verb agrees with", [noun.plural for noun in NOUNS])
words_concept(
    "attractor", "a noun between the subject and its verb", [noun.form(many) for noun in NOUNS for many in (False, True)]
)
words_concept("verb_singular", "a verb that agrees with a singular subject", SINGULAR_VERBS)
words_concept("verb_plural", "a verb that agrees with a plural subject", PLURAL_VERBS)
region_concept("relative_clause", "a clause about the subject", ("who", "that"))


def _noun(noun: _Noun, plural: bool, *concepts: str) -> Text:
    return word(noun.form(plural), *concepts)


def _subject(noun: _Noun, plural: bool) -> Text:
    return _noun(noun, plural, "plural_subject" if plural else "singular_subject")


def _verb(forms: tuple[str, str], plural: bool) -> Text:
    return word(forms[plural], "verb_plural" if plural else "verb_singular")


class _Clause(NamedTuple):
    """A subject and the words between the subject and its verb."""

    subject: _Noun
    attractor: _Noun
    between: str
    link: tuple[str, str]

    def text(self, plural: bool, attractor_plural: bool) -> Text:
        attractor = _noun(self.attractor, attractor_plural, "attractor")
        subject = fill("The {subject}", subject=_subject(self.subject, plural))
        if self.between == "near":
            return subject + fill(" {near} the {attractor}", near=self.link[0], attractor=attractor)
        if self.between == "who":
            clause = fill("who {verb} the {attractor}", verb=_verb(self.link, plural), attractor=attractor)
        else:
            clause = fill("that the {attractor} {verb}", attractor=attractor, verb=_verb(self.link, attractor_plural))
        return subject + " " + clause.labelled("relative_clause")


def _clause(rng: Random, split: Split) -> _Clause:
    def make(rng: Random) -> _Clause:
        between = rng.choice(("near", "near", "who", "that"))
        subject = rng.choice(_PERSONS if between == "who" else NOUNS)
        attractor = rng.choice(_PERSONS if between == "that" else NOUNS)
        near = rng.choice(_NEAR)
        return _Clause(subject, attractor, between, (near, near) if between == "near" else rng.choice(_LIKING))

    while True:
        made = make(rng)
        if made.subject != made.attractor and pair_is_heldout(made.subject.singular, made.attractor.singular) == (
            split == "heldout"
        ):
            return made


def pair_is_heldout(subject: str, attractor: str) -> bool:
    """Whether no training sentence has this subject with this attractor, in singular or plural."""
    return is_heldout("agreement", subject, attractor, share=HELD_OUT_PAIRS)


def _sentence(rng: Random, split: Split) -> Text:
    clause, plural = _clause(rng, split), rng.random() < 0.5
    forms, rests = rng.choice(_OF_PERSONS if clause.subject.person else _OF_THINGS)
    subject = clause.text(plural, rng.random() < 0.5)
    if split == "train" and rng.random() < 0.15:
        subject = fill("The {subject}", subject=_subject(clause.subject, plural))
    return fill("{subject} {verb} {rest}.", subject=subject, verb=_verb(forms, plural), rest=rng.choice(rests))


def write_agreement(rng: Random, split: Split) -> Text:
    """Four or five sentences. Most have a noun between subject and verb; half of these nouns have the other number."""
    return join([_sentence(rng, split) for _ in range(rng.randint(4, 5))])


def _prompt_agreement(rng: Random, split: Split) -> Prompt:
    """A sentence up to its verb, with an attractor in singular or plural. Corrupted: the subject has the other number."""
    clause, plural, attractor_plural = _clause(rng, split), rng.random() < 0.5, rng.random() < 0.5
    clean, corrupted = (clause.text(many, attractor_plural).text for many in (plural, not plural))
    return Prompt(clean, corrupted, f" {_TO_BE[0][plural]}", f" {_TO_BE[0][not plural]}", case=plural)


def number_is_right(prompt: Prompt, continuation: str) -> bool:
    """Whether the next word is a verb that agrees with the subject."""
    words = re.findall(r"\w+", continuation)
    return bool(words) and words[0] in (PLURAL_VERBS if prompt.case else SINGULAR_VERBS)


def _numbers(rng: Random, split: Split) -> tuple[str, str]:
    """The same sentence with a subject in singular and in plural."""
    clause, attractor_plural = _clause(rng, split), rng.random() < 0.5
    forms, rests = rng.choice(_OF_PERSONS if clause.subject.person else _OF_THINGS)
    rest = rng.choice(rests)
    singular, plural = (f"{clause.text(many, attractor_plural).text} {forms[many]} {rest.text}." for many in (False, True))
    return singular, plural


add_genre(
    Genre(
        "agreement",
        "sentences with a noun between the subject and its verb",
        1,
        write_agreement,
        {"attractor of the other number": 0.5, "held out": "15 % of the pairs of subject and attractor"},
    )
)
add_task(
    Task(
        "agreement",
        "agreement",
        "the verb has the number of its subject, not that of the noun before it",
        _prompt_agreement,
        at_least=0.95,
        check=number_is_right,
    )
)
add_contrast(Contrast("singular_plural", "agreement", "the same sentence about one thing and about many", _numbers))
