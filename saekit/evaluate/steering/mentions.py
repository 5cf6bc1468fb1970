"""How often a text mentions a concept, counted by the concept's words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from saekit.errors import ConfigError

_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class Rate:
    """Mentions of a concept among the words of texts."""

    hits: int
    """Number of mentions."""
    words: int
    """Number of words."""

    @property
    def value(self) -> float:
        """Mentions per word; 0 where there are no words."""
        return self.hits / self.words if self.words else 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.hits + other.hits, self.words + other.words)


class Mentions:
    """Finds the words (or phrases) of a concept in texts: whole words, in upper or lower case.

    Args:
        words: the concept's words, such as ["ice cream", "cake"]; blank ones are left out.

    Raises:
        ConfigError: there is no word, or the words are not a list of texts.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(word.strip() for word in _listed(words, "words") if word.strip())
        if not self.words:
            raise ConfigError("A concept without a word cannot be counted.", "Give at least one word that stands for it.")
        # The longest first: of "ice" and "ice cream" the phrase is found.
        choice = "|".join(map(re.escape, sorted(self.words, key=len, reverse=True)))
        self._pattern = re.compile(rf"(?<!\w)(?:{choice})(?!\w)", re.IGNORECASE)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of every mention, in order; none overlap."""
        return [match.span() for match in self._pattern.finditer(text)]

    def rate(self, texts: Iterable[str]) -> Rate:
        """Mentions among all words of `texts`.

        Raises:
            ConfigError: `texts` is one text, or not a list of texts.
        """
        return sum((Rate(len(self.spans(text)), len(_WORD.findall(text))) for text in _listed(texts, "texts")), Rate(0, 0))


def _listed(values: Iterable[str], what: str) -> list[str]:
    # A single text is iterable, too: its characters would be counted as words.
    listed = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if (listed and listed[0] is values) or not all(isinstance(value, str) for value in listed):
        raise ConfigError(f"The {what} are {values!r:.80}, not a list of texts.", "Write them like ['ice cream', 'cake'].")
    return listed
