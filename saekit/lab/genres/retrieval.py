"""Retrieval: a text states keys with values, and later asks for the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join, plain
from saekit.lab.words.names import NAMES, name
from saekit.lab.words.things import COLORS, PLACES, THINGS, color, place

FORMS = {"recited": 0.3, "all": 0.35, "restated": 0.25, "bare": 0.1}
"""Share of the documents that ask nothing but say their entries again and again, that ask for all entries, that ask for some of
them and are answered with key and value, and that are answered with the value alone: this is hard, nothing says where to look."""

words_concept("key", "what a value is looked up by", (*NAMES, *COLORS))
words_concept("value", "what is stored under a key", (*THINGS, *COLORS, *PLACES))
words_concept("retrieved_value", "a value that is given as the answer", (*THINGS, *COLORS, *PLACES))

# Types of the keys and of the values, the start of the line that states them, the question for all, the question for one.
_WORDS = {
    "pair": (COLORS, THINGS),
    "gift": (NAMES, THINGS),
    "color": (NAMES, COLORS),
    "place": (NAMES, PLACES),
}
_TITLES = {
    "pair": ("Pairs", "Table"),
    "gift": ("Gifts", "Presents"),
    "color": ("Colors", "Choices"),
    "place": ("Places", "Visits"),
}
_ALL = {
    "pair": ("What goes with what?", "Which are the pairs?"),
    "gift": ("Who got what?", "Which are the gifts?"),
    "color": ("Who chose what color?", "Which are the colors?"),
    "place": ("Who went where?", "Which are the places?"),
}
_QUESTIONS = {
    "pair": ("What goes with {key}?", "What is next to {key}?"),
    "gift": ("What did {key} get?", "What is the gift for {key}?"),
    "color": ("What color did {key} choose?", "Which color is for {key}?"),
    "place": ("Where did {key} go?", "Which place did {key} visit?"),
}
FILLERS = (
    "It was a long day.",
    "Many people were there.",
    "They waited for a long time.",
    "Nobody knew what to say.",
    "The old clock was slow again.",
    "After that they went home.",
    "It was late and they were tired.",
    "The street was quiet that day.",
)


@dataclass(frozen=True)
class _Table:
    """Distinct keys with distinct values, and the wording of the table."""

    kind: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    title: str
    question_for_all: str
    question: str

    def heldout(self) -> list[int]:
        """The entries that are held out from training."""
        entries = enumerate(zip(self.keys, self.values, strict=True))
        return [i for i, (key, value) in entries if is_heldout("retrieval", self.kind, key, value)]

    def entry(self, i: int, concept: str) -> Text:
        """Key `i` and its value. The value is labelled with `concept`."""
        return join([self._key(i), self.value(i, concept)])

    def value(self, i: int, concept: str) -> Text:
        """Value `i`, labelled with `concept`."""
        return {"color": color, "place": place}.get(self.kind, plain)(self.values[i]).labelled(concept)

    def _key(self, i: int) -> Text:
        return (color if self.kind == "pair" else name)(self.keys[i]).labelled("key")

    def line(self) -> Text:
        """The line that states all entries."""
        entries = join([self.entry(i, "value") for i in range(len(self.keys))], ", ")
        return fill("{title}: {entries}.", title=self.title, entries=entries)

    def listed(self, order: Sequence[int]) -> Text:
        """The question for all entries, and the entries in the order `order`."""
        entries = join([self.entry(i, "retrieved_value") for i in order], ", ")
        return fill("Question: {question}\nAnswer: {entries}.", question=self.question_for_all, entries=entries)

    def answered(self, i: int, restated: bool) -> Text:
        """The question for value `i`, and the value as the answer. If `restated`, the key precedes the value."""
        question = fill(self.question, key=self._key(i))
        answer = (self.entry if restated else self.value)(i, "retrieved_value")
        return fill("Question: {question}\nAnswer: {answer}.", question=question, answer=answer)

    def swapped(self, i: int, j: int) -> _Table:
        """The same table with the values of `i` and `j` swapped."""
        values = list(self.values)
        values[i], values[j] = values[j], values[i]
        return replace(self, values=tuple(values))


def _table(rng: Random, split: Split, fewest: int = 1) -> _Table:
    """A table of `fewest` to six entries. In the held-out split at least one entry is held out, in training none."""
    kind = rng.choice(tuple(_WORDS))
    keys, values = _WORDS[kind]
    n = rng.randint(fewest, 6)
    words = [rng.choice(wordings[kind]) for wordings in (_TITLES, _ALL, _QUESTIONS)]
    while True:
        table = _Table(kind, tuple(rng.sample(keys, n)), tuple(rng.sample(values, n)), *words)
        if bool(table.heldout()) == (split == "heldout"):
            return table


def _open(table: _Table, split: Split) -> list[int]:
    """Indices of the entries that `split` may ask for."""
    return table.heldout() if split == "heldout" else list(range(len(table.keys)))


def _context(table: _Table, fillers: list[str]) -> Text:
    return join([table.line(), *map(plain, fillers)])


def _fillers(rng: Random) -> list[str]:
    return rng.sample(FILLERS, rng.randint(0, 2))


def write(rng: Random, split: Split, form: str = "") -> Text:
    """A table and other sentences, then questions for the values in another order, or several lists of the entries.

    Args:
        form: one of `FORMS`; empty: drawn.
    """
    table = _table(rng, split)
    if not form:
        (form,) = rng.choices(tuple(FORMS), tuple(FORMS.values()))
    order = range(len(table.keys))
    if form == "recited":
        again = [join([table.entry(i, "retrieved_value") for i in rng.sample(order, len(order))], ", ") for _ in range(3)]
        return fill("{lines}.", lines=join([table.line(), join(again, ". ")]))
    context = _context(table, _fillers(rng))
    if form == "all":
        return join([context, table.listed(rng.sample(order, len(order)))], "\n")
    rows = _open(table, split)
    asked = rng.sample(rows, min(len(rows), 4))
    return join([context, *(table.answered(i, form == "restated") for i in asked)], "\n")


Asking = Callable[[_Table, int, Random], Text]


def _after_others(table: _Table, asked: int, rng: Random) -> Text:
    """A random number of the other entries in random order, followed by the entry `asked`."""
    others = [i for i in range(len(table.keys)) if i != asked]
    return table.listed([*rng.sample(others, rng.randint(0, len(others))), asked])


def _prompt(rng: Random, split: Split, asking: Asking) -> Prompt:
    """A document up to the last value. Corrupted: this value and another one are swapped in the table."""
    table = _table(rng, split, fewest=2)
    asked = rng.choice(_open(table, split))
    other = rng.choice([i for i in range(len(table.keys)) if i != asked])
    answer, foil = table.values[asked], table.values[other]
    fillers, seed = _fillers(rng), rng.random()
    clean, corrupted = (
        join([_context(t, fillers), asking(t, asked, Random(seed))], "\n").text.removesuffix(f" {value}.")
        for t, value in ((table, answer), (table.swapped(asked, other), foil))
    )
    return Prompt(clean, corrupted, f" {answer}", f" {foil}")


def _question(rng: Random, split: Split) -> tuple[str, str]:
    """The same table, with a question for one of its values and without one."""
    table = _table(rng, split)
    fillers = rng.sample(FILLERS, 4)
    asked = rng.choice(_open(table, split))
    return (
        join([_context(table, fillers[:2]), table.answered(asked, restated=True)], "\n").text,
        _context(table, fillers).text,
    )


add_genre(
    Genre(
        "retrieval",
        "a line of keys with values, other sentences, then questions for the values in another order",
        4,
        write,
        {
            "kinds": list(_WORDS),
            "entries": "1 to 6",
            "forms": FORMS,
            "held out": "10 % of the combinations of key and value",
        },
    )
)


def _task(name: str, what: str, asking: Asking, at_least: float | None = None) -> None:
    add_task(Task(name, "retrieval", what, lambda rng, split: _prompt(rng, split, asking), at_least=at_least))


_task("retrieval", "the value of a key that was stated before other sentences", _after_others, 0.9)
_task("retrieval_asked", "the same of the one key that is asked for", lambda table, i, _: table.answered(i, restated=True))
_task("retrieval_bare", "the same, where the answer begins with the value", lambda table, i, _: table.answered(i, restated=False))
add_contrast(
    Contrast("asked_value", "retrieval", "a table followed by a question for one of its values, or by nothing", _question)
)
