"""A tokenizer for tests whose tokens can be read: a word with the space before it, after a BOS."""

from __future__ import annotations

import re
from collections.abc import Sequence

BOS = 0


class WordTokens:
    """Call it for the ids of a text; a new word is given the next number."""

    def __init__(self) -> None:
        self._words = ["<s>"]

    def __call__(self, text: str) -> list[int]:
        words = re.findall(r" *[^ ]+| +", text)
        self._words += [word for word in dict.fromkeys(words) if word not in self._words]
        return [BOS, *map(self._words.index, words)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return "".join(self._words[index] for index in ids if index != BOS)
