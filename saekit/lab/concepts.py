"""The inventory of concepts. Every concept can test whether a text belongs to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One known concept of the corpus.

    `kind` is "word" if a span is a word or a short phrase, and "region" if a span is a longer text, such as a French sentence.
    `holds(text)` tests whether a span with this text belongs to the concept. Tests use it to check labels.
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
    """Register a concept that is a closed list of words or phrases (case is ignored). Returns its name."""
    listed = tuple(words)
    known = frozenset(text.casefold() for text in listed)
    return _register(Concept(name, description, "word", listed, lambda text: text.casefold() in known))


def pattern_concept(name: str, description: str, pattern: str) -> str:
    """Register a concept whose texts match a regular expression in full. Returns its name."""
    matcher = re.compile(pattern)
    return _register(Concept(name, description, "word", (), lambda text: matcher.fullmatch(text) is not None))


def region_concept(name: str, description: str, markers: Iterable[str]) -> str:
    """Register a concept whose texts contain at least one of the `markers` as a word (case is ignored). Returns its name."""
    listed = tuple(markers)
    matcher = re.compile(
        r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(listed, key=len, reverse=True))) + r")(?!\w)", re.IGNORECASE
    )
    return _register(Concept(name, description, "region", listed, lambda text: matcher.search(text) is not None))
