"""Joins the tokens of characters that a tokenizer splits into bytes, so that text in any language is readable.

Byte-level tokenizers and those with byte fallback write one character of Chinese or one emoji as several tokens. Each such token
is shown by its bytes, as `\\xe7`, which nobody can read; together they are a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# How Python's error handler "backslashreplace" writes a byte that is no UTF-8.
_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


class Piece(NamedTuple):
    """One token, or neighbouring tokens that are whole characters only together."""

    text: str
    value: float
    """The value of the strongest token."""
    start: int
    """Number of the first token."""
    stop: int
    """Number after that of the last token."""


def joined(tokens: Sequence[str], values: Sequence[float] | None = None) -> list[Piece]:
    """The tokens in order, with the pieces of split characters joined. Bytes that are no character in the end stay as they are.

    Args:
        tokens: texts of tokens as :meth:`saekit.lm.LanguageModel.token_strings` gives them.
        values: a value for each token, such as an activation; None: zeros.
    """
    numbers = [0.0] * len(tokens) if values is None else values
    if not _torn(tokens):  # nearly always
        return list(map(Piece, tokens, numbers, range(len(tokens)), range(1, len(tokens) + 1)))
    return [
        Piece(text, max(numbers[start:stop], key=abs), start, stop)
        for text, start, stop in _groups(tokens)
    ]  # fmt: skip


def join_text(tokens: Sequence[str]) -> str:
    """The text of tokens, with the pieces of split characters joined."""
    return "".join(tokens) if not _torn(tokens) else "".join(text for text, _, _ in _groups(tokens))


def _torn(tokens: Sequence[str]) -> bool:
    """Whether a token may hold a part of a character."""
    return "\\x" in "".join(tokens)


def _groups(tokens: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Text, first token and token after the last of each piece."""
    start, data = 0, b""  # the tokens that wait for the rest of a character, and their bytes
    for number, token in enumerate(tokens):
        raw = _bytes(token)
        if data and (raw is None or not _begins(data + raw)):
            yield from _single(tokens, start, number)
            data = b""
        if raw is None or not _begins(data + raw):
            yield token, number, number + 1
            continue
        if not data:
            start = number
        data += raw
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        yield text, start, number + 1
        data = b""
    if data:
        yield from _single(tokens, start, len(tokens))


def _single(tokens: Sequence[str], start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    yield from ((tokens[i], i, i + 1) for i in range(start, stop))


def _bytes(token: str) -> bytes | None:
    """The bytes of a token that holds a part of a character; None for other tokens."""
    parts = _BYTE.split(token)
    if len(parts) == 1:
        return None
    return b"".join(bytes([int(part, 16)]) if i % 2 else part.encode("utf-8", "replace") for i, part in enumerate(parts))


def _begins(data: bytes) -> bool:
    """Whether some text begins with these bytes."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True
