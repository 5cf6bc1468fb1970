"""Keeping the key, and what else an address holds in secret, out of all that is shown and stored."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qsl, quote, urlsplit

_SHORT = 8  # a shorter key is a placeholder, such as EMPTY: answers may hold the same word


class Secrets:
    """The texts that nobody may see.

    Args:
        key: the key; empty: none.
        url: the address; its query may hold a key.
    """

    def __init__(self, key: str, url: str) -> None:
        query = urlsplit(url).query
        values = [query, *(value for _, value in parse_qsl(query) if len(value) >= 4)]
        self._words = _forms([key, *values])
        self._long = [word for word in self._words if len(word) >= _SHORT]

    def cut_from(self, reason: str) -> str:
        """A reason without secrets. It must be clean before it is shortened: of a key that is cut, a part would stay."""
        return _without(self._words, reason)

    def cut_from_answer(self, text: str) -> str:
        """An answer without keys; words as short as a placeholder stay."""
        return _without(self._long, text)


def without_query(url: str) -> str:
    """An address as it may be shown: without query, fragment, user and password."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", url.strip(), maxsplit=1)[0])


def _forms(words: list[str]) -> list[str]:
    """Words as they stand, and as JSON and addresses write them; the longest first."""
    forms = {
        form
        for word in words
        if word
        for form in (word, json.dumps(word)[1:-1], word.replace("/", "\\/"), quote(word), quote(word, safe=""))
    }
    return sorted(forms, key=len, reverse=True)


def _without(words: list[str], text: str) -> str:
    for word in words:
        text = text.replace(word, "***")
    return text
