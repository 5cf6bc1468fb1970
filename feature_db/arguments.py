"""Checks of what callers give."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

from saekit.errors import ConfigError


def whole(value: object, name: str, *, least: int | None = None) -> int:
    """`value` as an integer.

    Raises:
        ConfigError: it is not a whole number, or less than `least`.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{name} is {value!r}.", "Give a whole number.") from None
    if least is not None and number < least:
        raise ConfigError(f"{name} is {number}.", f"Give at least {least}.")
    return number


def names(value: object, what: str) -> list[str]:
    """One text or several as a list.

    Raises:
        ConfigError: it is something else.
    """
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, Iterable) or isinstance(several, bytes | Mapping):
        raise ConfigError(f"{what} is {value!r:.60}.", "Give one name or a list of names.")
    found = list(several)
    if wrong := [each for each in found if not isinstance(each, str)]:
        raise ConfigError(f"{what} has {wrong[0]!r:.60}, which is not text.", "Give names.")
    return found


def unicode(text: str, what: str) -> str:
    """`text`, which must have a UTF-8 form.

    Raises:
        ConfigError: it is not text, or holds bytes that were no UTF-8.
    """
    if not isinstance(text, str):
        raise ConfigError(f"The {what} is {text!r:.80}, which is not text.", "Give a str.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"The {what} {text!r} is no valid Unicode: {error.reason}.", "Give it as UTF-8 text.") from error
    return text
