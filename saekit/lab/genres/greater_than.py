"""Sentences for the circuit of greater-than: something lasts from one year to a later one."""

from __future__ import annotations

import re
from random import Random

from saekit.lab.concepts import pattern_concept, words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, draw
from saekit.lab.text import Text, fill, join, word

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
