"""Reading and writing the JSON form of tasks, contrasts, labelled texts, metrics and rankings."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError
from saekit.files import write_whole
from saekit.json_files import read_json

VERSION = 1
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def save(path: str | Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    Raises:
        ConfigError: a value is nothing that JSON can hold.
        StorageFull, Unwritable: the file cannot be written.
    """
    content = {"format": f"saekit-{kind}", "version": VERSION, **values}
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The {kind} cannot be written to {path}: {error}.", "Keep to JSON values.") from error
    write_whole(Path(path), (text + "\n").encode())


def load(path: str | Path, kind: str, keys: Collection[str]) -> dict[str, Any]:
    """The values that :func:`save` wrote.

    Raises:
        ConfigError: there is no such file, or it does not hold an object of this kind.
    """
    content = read_json(Path(path), error=ConfigError, hint=f"Choose a file that a {kind} was saved to.")
    if content.get("format") != f"saekit-{kind}" or type(content.get("version")) is not int:
        raise ConfigError(f"{path} does not hold a {kind}.", f'It lacks "format": "saekit-{kind}".')
    if content["version"] != VERSION:
        raise ConfigError(f"{path} has version {content['version']}; this saekit reads {VERSION}.", "Update saekit.")
    del content["format"], content["version"]
    if content.keys() != set(keys):
        wrong = ", ".join(sorted(content.keys() ^ set(keys)))
        raise ConfigError(f"{path} lacks, or does not know, the values {wrong:.200}.", f"Known: {', '.join(sorted(keys))}.")
    return content


def texts(values: Any, what: str) -> tuple[str, ...]:
    """A list of texts as a tuple.

    Raises:
        ConfigError: it is one text, or something else.
    """
    # A single text is a sequence, too: of its characters.
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"The {what} are {values!r:.80}, not a list of texts.")
    return tuple(values)


def integers(values: Any, what: str) -> tuple[int, ...]:
    """A list of integers from 0 as a tuple.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"The {what} are {values!r:.80}, not a list of integers.")
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 for value in values):
        raise ConfigError(f"The {what} are {values!r:.80}, not a list of integers from 0.")
    return tuple(values)


def rows(values: Any, what: str) -> tuple[tuple[int, ...], ...]:
    """Rows of token ids as a tuple of tuples.

    Raises:
        ConfigError: they are something else.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"The {what} are {values!r:.80}, not rows of token ids.")
    return tuple(integers(row, f"token ids of the {what}") for row in values)


def pack_number(value: float) -> float | str:
    """A number as a JSON value; JSON has no NaN and no infinity, so these become text."""
    return value if math.isfinite(value) else str(value)


def unpack_number(value: Any, what: str) -> float:
    """The number that :func:`pack_number` was called on.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, str) and value in _NONFINITE:
        return _NONFINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"The {what} is {value!r:.80}, not a number.")
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"The {what} is too large a number.") from error
