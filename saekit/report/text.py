"""Text of models and corpora in a page."""

from __future__ import annotations

import re
from urllib.parse import quote

# Control characters but line feed and tab, and the characters that change the writing direction of what follows.
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


def visible(text: str) -> str:
    """`text` with its control characters as signs: ␛ for escape, \\u202e for a change of the writing direction."""
    return _CONTROL.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def link(file: str) -> str:
    """The relative address of a file beside a page. It names no scheme and no other folder, whatever the file is called."""
    return quote(file, safe="=,+")
