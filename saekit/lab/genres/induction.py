"""Lists of random names and words, and exact repetitions of them: induction predicts the next item."""

from __future__ import annotations

from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, draw
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.names import NAMES, name
from saekit.lab.words.things import THINGS

ITEMS = NAMES + THINGS
words_concept("repeated_item", "an item of a list that was in it before", ITEMS)
words_concept("list_opener", "the word that opens a list", ("List", "Words"))

OPENERS = ("List", "Words")
PAIRS = 0.5
"""Share of the pieces that are two items."""
_FIRST = {item: name(item) if item in NAMES else word(item) for item in ITEMS}
_AGAIN = {item: text.labelled("repeated_item") for item, text in _FIRST.items()}


def _sequence(rng: Random, split: Split, length: int) -> list[str]:
    """Distinct items: names only, things only, or both."""
    pool = rng.choice((NAMES, THINGS, ITEMS))
    return draw(rng, split, lambda rng: rng.sample(pool, length), case=lambda items: ("list", *items))


def _crop(rng: Random, items: list[str]) -> list[str]:
    """Consecutive items, often only two. In longer pieces, earlier items predict the next one as well as the last item does."""
    length = min(2 if rng.random() < PAIRS else rng.randint(3, 8), len(items))
    start = rng.randint(0, len(items) - length)
    return items[start : start + length]


def _line(items: list[str], texts: dict[str, Text]) -> Text:
    return join([texts[item] for item in items])


def write(rng: Random, split: Split) -> Text:
    """Lists and pieces of them in random order, 40 to 70 items in total. The position of a piece does not predict its items."""
    told: list[list[str]] = []
    lines: list[Text] = []
    total = 0
    while total < 40:
        if not told or rng.random() < 0.2:
            told.append(_sequence(rng, split, rng.randint(3, 14)))
            line = fill("{opener}: {line}", opener=word(rng.choice(OPENERS), "list_opener"), line=_line(told[-1], _FIRST))
            total += len(told[-1])
        else:
            piece = _crop(rng, rng.choice(told))
            line = _line(piece, _AGAIN)
            total += len(piece)
        lines.append(line)
    return fill("{lines}.", lines=join(lines, ". "))


def _prompt(rng: Random, split: Split) -> Prompt:
    """A list, and a piece of it up to an item. Corrupted: the list contains another item at that place."""
    length = rng.randint(6, 12)
    items = _sequence(rng, split, length)
    at = rng.randrange(2, length)
    shown = rng.choice([n for n in (1, 3, 4, 5) if n <= at])  # two items are usually a whole piece
    answer = items[at]
    foil = rng.choice([item for item in (NAMES if answer in NAMES else THINGS) if item not in items])
    opener, again = rng.choice(OPENERS), " ".join(items[at - shown : at])
    other = [*items[:at], foil, *items[at + 1 :]]
    clean, corrupted = (f"{opener}: {' '.join(first)}. {again}" for first in (items, other))
    return Prompt(clean, corrupted, f" {answer}", f" {foil}")


def _repetition(rng: Random, split: Split) -> tuple[str, str]:
    """A list with its repetition, and two different lists."""
    length = rng.randint(6, 12)
    first, second = _sequence(rng, split, length), _sequence(rng, split, length)
    return f"List: {' '.join(first)}. {' '.join(first)}.", f"List: {' '.join(first)}. {' '.join(second)}."


add_genre(
    Genre(
        "induction",
        "lists of two to fourteen random names and things, two to four times over",
        5,
        write,
        {"repetition": "word for word, always", "items": len(ITEMS)},
    )
)
add_task(
    Task("induction", "induction", "the next item of a list that is being repeated", _prompt, at_least=0.95),
)
add_contrast(Contrast("repeated_list", "induction", "a list repeated, or followed by another list", _repetition))
