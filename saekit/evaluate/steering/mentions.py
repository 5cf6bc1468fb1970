"""How often a text names a concept, by the concept's own words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from saekit.errors import ConfigError

_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class Rate:
    """A count out of another."""

    hits: int
    """Mentions of the concept."""
    words: int
    """Words in all."""

    @property
    def value(self) -> float:
        """Mentions a word; 0 where there are no words."""
        return self.hits / self.words if self.words else 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.hits + other.hits, self.words + other.words)


class Mentions:
    """Finds the words (or phrases) of a concept in texts: whole words, whatever their case.

    Args:
        words: the concept's words; "ice cream" is one of them.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(word for word in words if word.strip())
        if not self.words:
            raise ConfigError("A concept without a word cannot be counted.", "Give at least one word that stands for it.")
        # The longest first: of "ice" and "ice cream" the phrase is found.
        choice = "|".join(map(re.escape, sorted(self.words, key=len, reverse=True)))
        self._pattern = re.compile(rf"(?<!\w)(?:{choice})(?!\w)", re.IGNORECASE)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of every mention, in order; none overlap."""
        return [match.span() for match in self._pattern.finditer(text)]

    def rate(self, texts: Iterable[str]) -> Rate:
        """Mentions among all words of `texts`."""
        return sum((Rate(len(self.spans(text)), len(_WORD.findall(text))) for text in texts), Rate(0, 0))
