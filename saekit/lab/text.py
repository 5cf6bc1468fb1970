"""Labelled text: pieces can be concatenated, and every label stays on its characters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from string import Formatter

from saekit.tasks.labelled import Span


@dataclass(frozen=True, slots=True)
class Text:
    """An immutable piece of text and the spans of its concepts. `+` concatenates two pieces."""

    text: str
    spans: tuple[Span, ...] = ()

    def __add__(self, other: Text | str) -> Text:
        other = plain(other)
        shift = len(self.text)
        return Text(self.text + other.text, self.spans + tuple(Span(s + shift, e + shift, c) for s, e, c in other.spans))

    def labelled(self, *concepts: str) -> Text:
        """The same text with one more span over all of it for each of `concepts`."""
        return replace(self, spans=self.spans + tuple(Span(0, len(self.text), concept) for concept in concepts))

    def capitalised(self) -> Text:
        """The same text with its first letter capitalised."""
        return replace(self, text=self.text[:1].upper() + self.text[1:])


def word(text: str, *concepts: str) -> Text:
    """`text` labelled with `concepts`."""
    return Text(text).labelled(*concepts)


def plain(text: Text | str) -> Text:
    """`text` as a `Text`. A str gets no labels."""
    return text if isinstance(text, Text) else Text(text)


@cache
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in Formatter().parse(template))


def fill(template: str, **slots: Text | str) -> Text:
    """Replace each `{name}` of `template` by its slot, and keep the labels of the slots.

    >>> fill("The {pet} sleeps.", pet=word("cat", "animals")).spans
    (Span(start=4, end=7, concept='animals'),)
    """
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for literal, name in _parts(template):
        pieces.append(literal)
        length += len(literal)
        if name is not None:
            slot = plain(slots[name])
            spans.extend(Span(start + length, end + length, concept) for start, end, concept in slot.spans)
            pieces.append(slot.text)
            length += len(slot.text)
    return Text("".join(pieces), tuple(spans))


def join(pieces: list[Text], between: str = " ") -> Text:
    """Concatenate `pieces`, with `between` after every piece but the last."""
    return fill(
        between.replace("{", "{{").replace("}", "}}").join(f"{{p{i}}}" for i in range(len(pieces))),
        **{f"p{i}": piece for i, piece in enumerate(pieces)},
    )
