"""Sentences for known circuits: the indirect object, a later year (greater-than), and the number of a verb (agreement)."""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from saekit.lab.concepts import pattern_concept, region_concept, words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, draw, is_heldout, phrase
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.names import NAMES, name
from saekit.lab.words.things import GIFTS, PERSON_PLURALS, PLACES, THING_PLURALS, place

# The indirect object.

words_concept("giver", "who gives something away", NAMES)
words_concept("receiver", "who is given something", NAMES)
words_concept("gift", "what somebody gives to somebody", GIFTS)

DISTRACTORS = 0.1
_GIVING = (
    "When {a} and {b} went to the {place}, {giver} gave a {gift} to {receiver}.",
    "Then {a} and {b} went to the {place}, and {giver} handed a {gift} to {receiver}.",
    "After {a} and {b} met at the {place}, {giver} passed a {gift} to {receiver}.",
    "Yesterday {a} and {b} were at the {place}, where {giver} gave the {gift} to {receiver}.",
    "While {a} and {b} were waiting at the {place}, {giver} handed the {gift} to {receiver}.",
    "Then {a} and {b} found a {gift} at the {place}, and {giver} gave it to {receiver}.",
    "When {a} and {b} came from the {place}, {giver} wanted to give a {gift} to {receiver}.",
    "Yesterday {a} and {b} met at the {place}, and {giver} passed the {gift} to {receiver}.",
    # held out
    "While {a} and {b} were at the {place}, {giver} passed the {gift} to {receiver}.",
    "After {a} and {b} came from the {place}, {giver} wanted to give the {gift} to {receiver}.",
)


def _meeting(rng: Random, split: Split, pool: list[str]) -> tuple[str, str, str]:
    """Two names of `pool` and a place. Their combination belongs to `split`."""

    def make(rng: Random) -> tuple[str, str, str]:
        a, b = rng.sample(pool, 2)
        return a, b, rng.choice(PLACES)

    return draw(rng, split, make, case=lambda case: ("meeting", *case))


def _giving(rng: Random, split: Split, template: str, a: str, b: str, where: str, giver: str, receiver: str) -> Text:
    return fill(
        template,
        a=name(a),
        b=name(b),
        place=place(where),
        giver=name(giver).labelled("giver"),
        receiver=name(receiver).labelled("receiver"),
        gift=word(rng.choice(GIFTS), "gift"),
    )


def write_indirect_object(rng: Random, split: Split) -> Text:
    """Two or three sentences in which one of two people gives something to the other. Either may be named first."""
    pool, sentences = list(NAMES), []
    for _ in range(rng.randint(2, 3)):
        a, b, where = _meeting(rng, split, pool)
        pool = [other for other in pool if other not in (a, b)]
        giver, receiver = rng.choice(((a, b), (b, a)))
        if rng.random() < DISTRACTORS:
            giver = pool.pop(rng.randrange(len(pool)))
        template = phrase(rng, split, _GIVING, 2)
        sentences.append(_giving(rng, split, template, a, b, where, giver, receiver))
    return join(sentences)


def _prompt_indirect_object(rng: Random, split: Split) -> Prompt:
    """A sentence up to the receiver. Corrupted: the receiver is the giver."""
    a, b, where = _meeting(rng, split, list(NAMES))
    giver, receiver = rng.choice(((a, b), (b, a)))
    template = phrase(rng, split, _GIVING, 2)
    seed = rng.random()
    clean, corrupted = (
        _giving(Random(seed), split, template, a, b, where, *pair).text for pair in ((giver, receiver), (receiver, giver))
    )
    return Prompt(
        clean.removesuffix(f" {receiver}."), corrupted.removesuffix(f" {giver}."), f" {receiver}", f" {giver}", case=(a, b, where)
    )


def _third_giver(rng: Random, split: Split) -> tuple[str, str]:
    """The same sentence with one of the two people as giver, and with a third person as giver."""
    a, b, where = _meeting(rng, split, list(NAMES))
    template, seed = phrase(rng, split, _GIVING, 2), rng.random()
    third = rng.choice([other for other in NAMES if other not in (a, b)])
    repeated, distinct = (_giving(Random(seed), split, template, a, b, where, giver, a).text for giver in (b, third))
    return repeated, distinct


add_genre(
    Genre(
        "indirect_object",
        "two people meet, one gives the other something; two or three such sentences",
        4,
        write_indirect_object,
        {"a third person gives": DISTRACTORS, "held out": "2 phrasings of 10; 10 % of the combinations of two names and a place"},
    )
)
add_task(
    Task(
        "indirect_object",
        "indirect_object",
        "the receiver is the one of the two people who does not give",
        _prompt_indirect_object,
        at_least=0.95,
    )
)
add_contrast(Contrast("known_giver", "indirect_object", "one of the two people gives, or a third one", _third_giver))

# Greater-than: a later year.

EVENTS = ("war", "journey", "project", "study", "peace", "plan", "trial", "conflict", "search", "reign", "crisis", "strike")
words_concept("event", "something that lasts for years", EVENTS)
pattern_concept("year", "a year of four digits", r"1[1-9]\d\d")
pattern_concept("start_year", "the year in which something began", r"1[1-9]\d\d")
pattern_concept("end_year", "the year in which something ended", r"1[1-9]\d\d")

_LASTING = (
    "The {event} lasted from the year {start} to the year {end}.",
    "The {event} began in the year {start} and ended in the year {end}.",
    "The {event} went on from the year {start} to the year {end}.",
)


def _beginning(rng: Random, split: Split) -> tuple[str, int]:
    return draw(
        rng,
        split,
        lambda rng: (rng.choice(EVENTS), 100 * rng.randint(11, 19) + rng.randint(1, 97)),
        case=lambda case: ("beginning", *case),
    )


def _lasting(template: str, event: str, start: int, end: int) -> Text:
    return fill(
        template,
        event=word(event, "event"),
        start=word(str(start), "year", "start_year"),
        end=word(str(end), "year", "end_year"),
    )


def _end(rng: Random, start: int) -> int:
    """A later year of the same century, drawn uniformly."""
    return rng.randint(start + 1, start // 100 * 100 + 99)


def write_greater_than(rng: Random, split: Split) -> Text:
    """Two or three things with their first year and their last year, which is a later one of the same century."""
    sentences = []
    for _ in range(rng.randint(2, 3)):
        event, start = _beginning(rng, split)
        sentences.append(_lasting(rng.choice(_LASTING), event, start, _end(rng, start)))
    return join(sentences)


def _prompt_greater_than(rng: Random, split: Split) -> Prompt:
    """A sentence up to the decade of the last year. Corrupted: the first year ends in 01 or 02, so that every decade is later."""
    while True:
        event, start = _beginning(rng, split)
        century, tens = divmod(start // 10, 10)
        if 2 <= tens <= 8:
            break
    template = rng.choice(_LASTING)
    clean, corrupted = (
        _lasting(template, event, year, century * 100 + 99).text.removesuffix("99.")
        for year in (start, century * 100 + rng.randint(1, 2))
    )
    return Prompt(clean, corrupted, str(rng.randint(tens + 1, 9)), str(rng.randint(0, tens - 1)), case=start % 100)


def year_is_later(prompt: Prompt, continuation: str) -> bool:
    """Whether the continuation begins with exactly two digits, and they complete a year after the first one."""
    digits = re.match(r"(\d\d)(?!\d)", continuation.strip())
    return digits is not None and isinstance(prompt.case, int) and int(digits[1]) > prompt.case


def _centuries(rng: Random, split: Split) -> tuple[str, str]:
    """A first year late in the century, and one early in the century."""
    template, (event, start) = rng.choice(_LASTING), _beginning(rng, split)
    century = start // 100 * 100
    late, early = century + rng.randint(70, 90), century + rng.randint(1, 20)
    return _lasting(template, event, late, _end(rng, late)).text, _lasting(template, event, early, _end(rng, late)).text


add_genre(
    Genre(
        "greater_than",
        "things that lasted from one year to a later one of the same century",
        1,
        write_greater_than,
        {
            "end": "uniform between the start and the end of the century",
            "held out": "10 % of the combinations of event and start",
        },
    )
)
add_task(
    Task(
        "greater_than",
        "greater_than",
        "the year in which something ended is later than the year in which it began",
        _prompt_greater_than,
        at_least=0.9,
        check=year_is_later,
    )
)
add_contrast(Contrast("late_start", "greater_than", "the beginning is late or early in the century", _centuries))

# Agreement: the number of a verb.


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
