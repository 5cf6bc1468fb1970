"""The concept inventory: every concept can say of a text whether it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One known concept of the corpus.

    `kind`: "word" (the span is a word or short phrase of the concept) or "region" (a stretch of text in its manner, such as
    a French sentence). `holds(text)`: whether a span of this text belongs; it is what makes labels testable.
    """

    name: str
    description: str
    kind: str
    words: tuple[str, ...]
    holds: Callable[[str], bool]


CONCEPTS: dict[str, Concept] = {}


def _register(concept: Concept) -> str:
    assert concept.name not in CONCEPTS, f"two concepts are called {concept.name}"
    CONCEPTS[concept.name] = concept
    return concept.name


def words_concept(name: str, description: str, words: Iterable[str]) -> str:
    """A concept that is a closed list of words or phrases (case is ignored); gives its name."""
    listed = tuple(words)
    known = frozenset(text.casefold() for text in listed)
    return _register(Concept(name, description, "word", listed, lambda text: text.casefold() in known))


def pattern_concept(name: str, description: str, pattern: str) -> str:
    """A concept whose texts match a regular expression as a whole; gives its name."""
    matcher = re.compile(pattern)
    return _register(Concept(name, description, "word", (), lambda text: matcher.fullmatch(text) is not None))


def region_concept(name: str, description: str, markers: Iterable[str]) -> str:
    """A concept of whole stretches, each with one of the `markers` or more as a word (case is ignored); gives its name."""
    listed = tuple(markers)
    matcher = re.compile(
        r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(listed, key=len, reverse=True))) + r")(?!\w)", re.IGNORECASE
    )
    return _register(Concept(name, description, "region", listed, lambda text: matcher.search(text) is not None))
