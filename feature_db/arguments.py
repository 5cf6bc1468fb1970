"""Checks of what callers give."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable

from saekit.errors import ConfigError


def whole(value: object, name: str) -> int:
    """`value` as an integer.

    Raises:
        ConfigError: it is no whole number.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{name} is {value!r}.", "Give a whole number.") from None


def unicode(text: str, what: str) -> str:
    """`text`, which must have a UTF-8 form.

    Raises:
        ConfigError: it holds bytes that were no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"The {what} {text!r} is no valid Unicode: {error.reason}.", "Give it as UTF-8 text.") from error
    return text


def known(value: str, choices: Iterable[str], what: str) -> str:
    """`value`, which must be one of `choices`.

    Raises:
        ConfigError: it is not; the message names the nearest choice.
    """
    names = list(choices)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, 1, 0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"There is no {what} {value!r}.", f"{hint}Choose from {', '.join(names)}.")
