"""Parsers for the values of options."""

from __future__ import annotations

import re
from collections.abc import Callable

import typer

_COUNT = re.compile(r"([+-]?\d[\d_,]*(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([kKmMbBgG]?)")
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def read_count(text: str) -> int | None:
    """Parse a whole number, such as 100000, 100_000, 1e5, 100k or 2M. Returns None if `text` is not a whole number."""
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        return None
    digits, suffix = match[1].replace("_", "").replace(",", ""), match[2].lower()
    if digits.lstrip("+-").isdecimal():
        return int(digits) * _SUFFIXES[suffix]
    value = float(digits) * _SUFFIXES[suffix]
    return int(value) if value.is_integer() and abs(value) < 2**63 else None


def count(least: int, most: int | None = None) -> Callable[[str | int], int]:
    """A parser of whole numbers from `least` to `most`."""

    def parse(text: str | int) -> int:
        value = text if isinstance(text, int) else read_count(text)
        if value is None:
            raise typer.BadParameter(f"{text!r} is not a whole number. Write 100000, 1e5, 100k or 2M.")
        if value < least:
            raise typer.BadParameter(f"{value:,} is too small: at least {least:,}.")
        if most is not None and value > most:
            raise typer.BadParameter(f"{value:,} is too large: at most {most:,}.")
        return value

    parse.__name__ = "count"
    return parse
