"""Steps of a solution: sums a+b=c that a text does, and the answer that it ends with."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STEP = re.compile(r"(?<!\d)(\d+)([+-])(\d+)=(\d+)")
_ANSWER = re.compile(r"Answer: (-?\d+)")


@dataclass(frozen=True)
class Step:
    """A sum in a text.

    Attributes:
        start: the character after the equals sign, where the result begins.
        text: the sum without its result, up to the equals sign.
        right: the result that it should have.
        said: the result that it has.
    """

    start: int
    text: str
    right: int
    said: int

    @property
    def swapped(self) -> str:
        """The sum with its two numbers swapped, up to the equals sign; a difference as it is."""
        a, plus, b = self.text[:-1].partition("+")
        return f"{b}+{a}=" if plus else self.text

    @property
    def is_wrong(self) -> bool:
        """Whether the result is another than it should be."""
        return self.said != self.right


def steps_of(text: str) -> list[Step]:
    """The sums of a text in order."""
    found = []
    for match in _STEP.finditer(text):
        a, sign, b, said = match.groups()
        right = int(a) + int(b) if sign == "+" else int(a) - int(b)
        found.append(Step(match.start(4), match[0][: -len(said)], right, int(said)))
    return found


def answer_of(text: str) -> int | None:
    """The number after the first "Answer: "; None where there is none."""
    match = _ANSWER.search(text)
    return None if match is None else int(match[1])
