"""Sentences for the circuit of the indirect object: one of two people gives the other something."""

from __future__ import annotations

from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, draw, phrase
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.names import NAMES, name
from saekit.lab.words.things import GIFTS, PLACES, place

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
