"""Lists of random names and words, repeated word for word: what comes next is what came next before."""

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

_FIRST = {item: name(item) if item in NAMES else word(item) for item in ITEMS}
_AGAIN = {item: text.labelled("repeated_item") for item, text in _FIRST.items()}


def _sequence(rng: Random, split: Split, length: int) -> list[str]:
    """Distinct items: only names, only things, or both."""
    pool = rng.choice((NAMES, THINGS, ITEMS))
    return draw(rng, split, lambda rng: rng.sample(pool, length), case=lambda items: ("list", *items))


def _list(items: list[str], repeats: int, opener: str) -> Text:
    lines = [join([_FIRST[item] for item in items])] + [join([_AGAIN[item] for item in items])] * (repeats - 1)
    return fill("{opener}: {lines}.", opener=word(opener, "list_opener"), lines=join(lines, ". "))


def write(rng: Random, split: Split) -> Text:
    """One or two lists, each two to four times over, of 30 to 60 items in all."""
    lists: list[Text] = []
    total = 0
    while total < 30:
        length, repeats = rng.randint(2, 14), rng.randint(2, 4)
        lists.append(_list(_sequence(rng, split, length), repeats, rng.choice(("List", "Words"))))
        total += length * repeats
    return join(lists)


def _prompt(rng: Random, split: Split) -> Prompt:
    """A list and its repetition up to an item; corrupted: another item stands there the first time."""
    length = rng.randint(6, 12)
    items = _sequence(rng, split, length)
    at = rng.randrange(2, length)
    answer = items[at]
    foil = rng.choice([item for item in (NAMES if answer in NAMES else THINGS) if item not in items])
    opener, again = rng.choice(("List", "Words")), " ".join(items[:at])
    other = [*items[:at], foil, *items[at + 1 :]]
    clean, corrupted = (f"{opener}: {' '.join(first)}. {again}" for first in (items, other))
    return Prompt(clean, corrupted, f" {answer}", f" {foil}")


def _repetition(rng: Random, split: Split) -> tuple[str, str]:
    """A list twice over, and two different lists."""
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
