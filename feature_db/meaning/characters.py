"""Names of punctuation marks and symbols."""

from __future__ import annotations

import unicodedata
from collections.abc import Set
from functools import cache

_EVERYDAY = {
    ".": "period, dot, point", "-": "dash, hyphen, minus, minus sign", "—": "dash, long dash", "–": "dash", "…": "ellipsis",
    '"': "double quote, double quotation mark, quote, speech mark", "'": "single quote, quote, apostrophe",
    "“": "quotation mark, double quote, quote, opening quote", "”": "quotation mark, double quote, quote, closing quote",
    "‘": "quotation mark, single quote, quote", "’": "quotation mark, apostrophe, single quote, quote",
    "«": "quotation mark, quote, guillemet", "»": "quotation mark, quote, guillemet", "!": "exclamation point, exclamation",
    "(": "parenthesis, bracket, opening bracket, open bracket", ")": "parenthesis, bracket, closing bracket, close bracket",
    "[": "bracket, square bracket", "]": "bracket, square bracket", "{": "brace, curly bracket", "}": "brace, curly bracket",
    "/": "slash, forward slash", "\\": "backslash", "_": "underscore", "&": "and sign", "#": "hash, hash sign, hashtag",
    "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "%": "percent, per cent, percentage sign", "=": "equals, equal sign",
    "+": "plus", "<": "less than", ">": "greater than", "@": "at sign", "|": "vertical bar", "^": "caret", "`": "backtick",
    "°": "degree", "•": "bullet point",
}  # fmt: skip
"""Everyday names of characters beside their Unicode names."""


def characters_called(words: Set[str]) -> list[tuple[str, frozenset[str]]]:
    """Characters that have a name whose words are all among these, each with the name's words.

    A name that is a part of another's is left out: a "double quotation mark" is no other quotation mark.
    """
    named = {(char, name) for word in words for name, char in _by_name().get(word, ()) if name <= words}
    return sorted(((char, name) for char, name in named if not any(name < other for _, other in named)), key=lambda each: each[0])


@cache
def _by_name() -> dict[str, list[tuple[frozenset[str], str]]]:
    """Characters and the words of their names, by each of these words."""
    found: dict[str, list[tuple[frozenset[str], str]]] = {}
    for char in map(chr, range(0x10000)):  # the Basic Multilingual Plane
        if unicodedata.category(char)[0] not in "PS":
            continue
        for name in (unicodedata.name(char, ""), *_EVERYDAY.get(char, "").split(", ")):
            words = frozenset(name.casefold().replace("-", " ").split())
            for word in words:
                found.setdefault(word, []).append((words, char))
    return found
