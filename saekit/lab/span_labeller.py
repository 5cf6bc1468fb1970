"""Labels by vocabulary, for genres in which every occurrence of a word has the same concepts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from saekit.lab.text import Span, Text, plain


class SpanLabeller:
    """Labels every occurrence of the words or phrases of some concepts. Case is ignored."""

    def __init__(self, words_by_concept: Mapping[str, Iterable[str]]) -> None:
        self._concepts: dict[str, tuple[str, ...]] = {}
        for concept, words in words_by_concept.items():
            for text in words:
                self._concepts[text.casefold()] = (*self._concepts.get(text.casefold(), ()), concept)
        longest_first = sorted(self._concepts, key=len, reverse=True)
        self._pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b", re.IGNORECASE)

    def __call__(self, text: Text | str) -> Text:
        """`text` with its own spans, and one more span for each concept of each word that it contains."""
        text = plain(text)
        found = tuple(
            Span(match.start(), match.end(), concept)
            for match in self._pattern.finditer(text.text)
            for concept in self._concepts[match.group().casefold()]
        )
        return Text(text.text, text.spans + found)
