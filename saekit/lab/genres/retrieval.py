"""Keys and values early in a text, asked for late."""

from __future__ import annotations

from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join, plain
from saekit.lab.words.names import NAMES, name
from saekit.lab.words.things import COLORS, THINGS, color, place
from saekit.lab.words.things import PLACES as PUBLIC

CODES = tuple(str(number) for number in range(10, 100))
RESTATED = 0.7
"""Share of the documents whose answers repeat the line that stated the value, which is how they can be copied."""
_HOLDERS = ("box", "bag", "basket", "door", "book", "letter", "coat", "lamp")

words_concept("key", "what a value is looked up by", (*NAMES, *THINGS, *COLORS))
words_concept("value", "what is stored under a key", (*THINGS, *COLORS, *PUBLIC, *CODES))
words_concept("retrieved_value", "a value that is given as the answer", (*THINGS, *COLORS, *PUBLIC, *CODES))

# Per kind: the line that states a pair, the question for it, the possible keys and values.
_KINDS = {
    "code": ("The code of {key} is {value}.", "What is the code of {key}?"),
    "pair": ("Key: {key} Value: {value}.", "What is the value of {key}?"),
    "color": ("The {thing} of {key} is {value}.", "What color is the {thing} of {key}?"),
    "place": ("{key} left the {thing} at the {value}.", "Where did {key} leave the {thing}?"),
}
_FILLERS = (
    "It was a long day.",
    "Many people were there.",
    "They waited for a long time.",
    "Nobody knew what to say.",
    "The old clock was slow again.",
    "After that they went home.",
    "It was late and they were tired.",
    "The street was quiet that day.",
)


class _Pairs:
    """Keys with their values, all of them distinct, of one kind; `value_of` lets values be swapped."""

    def __init__(self, rng: Random, split: Split, kind: str) -> None:
        self.kind = kind
        n = rng.randint(2, 5)
        values = {"code": CODES, "pair": THINGS, "color": COLORS, "place": PUBLIC}[kind]
        while True:
            self.values = rng.sample(values, n)
            self.things = rng.sample(_HOLDERS if kind != "place" else THINGS, n)
            self.keys = rng.sample(COLORS if kind in ("code", "pair") else NAMES, n)
            held = [self._is_heldout(i) for i in range(n)]
            if split == "train" and not any(held):
                self.asked = list(range(n))
                break
            if split == "heldout" and any(held):
                self.asked = [i for i in range(n) if held[i]]
                break

    def _is_heldout(self, i: int) -> bool:
        thing = self.things[i] if self.kind in ("code", "place") else ""
        key = self.keys[i] if self.kind != "place" else ""
        return is_heldout("retrieval", self.kind, key, thing, self.values[i], share=0.1)

    def _slots(self, i: int) -> dict[str, Text]:
        key, thing = self.keys[i], plain(self.things[i])
        if self.kind == "code":
            return {"key": fill("the {color} {thing}", color=color(key).labelled("key"), thing=thing.labelled("key"))}
        if self.kind == "pair":
            return {"key": color(key).labelled("key")}
        if self.kind == "color":
            return {"key": name(key).labelled("key"), "thing": thing}
        return {"key": name(key), "thing": thing.labelled("key")}

    def _value(self, i: int) -> Text:
        value = self.values[i]
        return {"color": color, "place": place}.get(self.kind, plain)(value)

    def line(self, i: int) -> Text:
        """What states pair `i`."""
        return fill(_KINDS[self.kind][0], value=self._value(i).labelled("value"), **self._slots(i))

    def question(self, i: int) -> Text:
        """What asks for pair `i`, up to the colon."""
        return fill("Question: {question}\nAnswer:", question=fill(_KINDS[self.kind][1], **self._slots(i)))

    def answer(self, i: int, restated: bool) -> Text:
        """The value of pair `i` as the answer, alone or in the words of its line."""
        template = _KINDS[self.kind][0] if restated else "{value}."
        return fill(f" {template}", value=self._value(i).labelled("retrieved_value"), **self._slots(i))

    def swapped(self, i: int, j: int) -> _Pairs:
        """The same pairs with the values of `i` and `j` changed over."""
        other = object.__new__(_Pairs)
        other.__dict__.update(self.__dict__)
        other.values = list(self.values)
        other.values[i], other.values[j] = self.values[j], self.values[i]
        return other

    def context(self, fillers: list[str]) -> Text:
        """All pairs, then the fillers."""
        return fill("{lines} {fillers}\n", lines=join([self.line(i) for i in range(len(self.keys))]), fillers=" ".join(fillers))


def _fillers(rng: Random) -> list[str]:
    return rng.sample(_FILLERS, rng.randint(1, 3))


def write(rng: Random, split: Split) -> Text:
    """Two to five pairs, a few sentences of something else, and the questions in another order."""
    pairs = _Pairs(rng, split, rng.choice(tuple(_KINDS)))
    asked, restated = rng.sample(pairs.asked, min(len(pairs.asked), 4)), rng.random() < RESTATED
    return pairs.context(_fillers(rng)) + join([pairs.question(i) + pairs.answer(i, restated) for i in asked], "\n")


def _prompt(rng: Random, split: Split, kinds: tuple[str, ...], restated: bool) -> Prompt:
    """A document up to the value in its first answer; corrupted: the value asked for has changed places with another."""
    while True:
        pairs = _Pairs(rng, split, rng.choice(kinds))
        asked = rng.choice(pairs.asked)
        other = rng.choice([i for i in range(len(pairs.keys)) if i != asked])
        answer, foil = pairs.values[asked], pairs.values[other]
        if answer[0] != foil[0] or kinds != ("code",):
            break
    fillers = _fillers(rng)
    clean, corrupted = (
        (p.context(fillers) + p.question(asked) + p.answer(asked, restated)).text.removesuffix(f" {value}.")
        for p, value in ((pairs, answer), (pairs.swapped(asked, other), foil))
    )
    return Prompt(clean, corrupted, f" {answer}", f" {foil}")


def _question(rng: Random, split: Split) -> tuple[str, str]:
    """The same pairs with and without a question for one of them."""
    pairs = _Pairs(rng, split, rng.choice(tuple(_KINDS)))
    fillers = rng.sample(_FILLERS, 4)
    asked = rng.choice(pairs.asked)
    return (
        (pairs.context(fillers[:2]) + pairs.question(asked) + pairs.answer(asked, restated=True)).text,
        pairs.context(fillers).text.rstrip(),
    )


add_genre(
    Genre(
        "retrieval",
        "two to five keys with values, other sentences, then questions for the values in another order",
        2.5,
        write,
        {
            "kinds": list(_KINDS),
            "answers that restate their line": RESTATED,
            "held out": "10 % of the combinations of key and value",
        },
    )
)
add_task(
    Task(
        "retrieval",
        "retrieval",
        "the value of a key that was stated before other keys and other sentences",
        lambda rng, split: _prompt(rng, split, ("pair", "color", "place"), restated=True),
        at_least=0.9,
    )
)
add_task(
    Task(
        "retrieval_bare",
        "retrieval",
        "the same, where the answer begins with the value",
        lambda rng, split: _prompt(rng, split, ("pair", "color", "place"), restated=False),
    )
)
add_task(
    Task(
        "retrieval_code",
        "retrieval",
        "the same, where the value is a number of two digits",
        lambda rng, split: _prompt(rng, split, ("code",), restated=True),
    )
)
add_contrast(Contrast("asked_value", "retrieval", "pairs followed by a question for one of them, or by nothing", _question))
