"""Reads lines of JSON that somebody else wrote: what cannot be read is left out and counted, a damaged file is an error."""

from __future__ import annotations

import gzip
import math
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from saekit.errors import ExchangeError, shown_path
from saekit.json_files import parse_json

LONGEST = 32 << 20
"""Bytes of a line. A decoder direction of 100,000 numbers needs 2 MB."""
LARGEST = 1e15
"""Of an activation, a logit or an entry of a direction. Sums of squares of a row of such numbers stay finite in float32."""
_FETCH = "Fetch the file again: it may have been cut off."


def rows(path: Path, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines, compressed if its name ends in `.gz`.

    Args:
        path: an ordinary file; links are not followed.
        left_out: the number of lines that are left out, by the reason, is added here.

    Raises:
        ExchangeError: the file cannot be read, or its compression is damaged.
    """
    where = shown_path(path)
    try:
        with _opened(path) as file:
            while line := file.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    left_out["line too long"] += 1
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST)
                    continue
                if not line.strip():
                    continue
                try:
                    yield parse_json(line, dict, where=where, error=ExchangeError)
                except ExchangeError:
                    left_out["line that is no JSON object with finite numbers"] += 1
    except (EOFError, zlib.error, OSError) as error:
        raise ExchangeError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}.", _FETCH) from error


def _opened(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError("it is not an ordinary file")
    return gzip.GzipFile(fileobj=file, mode="rb") if path.suffix == ".gz" else file  # type: ignore[return-value]


def number(value: object, low: float = -math.inf, high: float = math.inf) -> float | None:
    """A finite number in a range; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and low <= found <= high else None


def whole(value: object, low: int, high: int) -> int | None:
    """A whole number in a range, also as a text of digits; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 12:
        value = int(value)
    return value if type(value) is int and low <= value <= high else None


def numbers(value: object, longest: int, largest: float = math.inf) -> list[float] | None:
    """A list of finite numbers between `-largest` and `largest`; None for anything else."""
    if not isinstance(value, list) or len(value) > longest:
        return None
    found = [number(each, -largest, largest) for each in value]
    return None if None in found else found  # type: ignore[return-value]


def texts(value: object, longest: int, characters: int = 1000) -> list[str] | None:
    """A list of texts that have a UTF-8 form; None for anything else."""
    if not isinstance(value, list) or len(value) > longest:
        return None
    if not all(isinstance(each, str) and len(each) <= characters for each in value):
        return None
    return [each.encode("utf-8", "replace").decode() for each in value]
