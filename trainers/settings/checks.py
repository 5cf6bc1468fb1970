"""Checks of single settings."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin

from saekit.errors import ConfigError, excerpt, kind_words
from saekit.plugins import nearest


def check_type(name: str, value: Any, declared: Any) -> None:
    """Check that a setting has the type of its annotation, and is finite if it is a number.

    Raises:
        ConfigError: it does not.
    """
    if get_origin(declared) is Literal:
        return check_one_of(name, value, get_args(declared))
    if get_origin(declared) is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name}={excerpt(value)} is impossible.", "It must be a list of numbers.")
        for item in value:
            check_type(name, item, get_args(declared)[0])
        return None
    kinds = get_args(declared) or (declared,)
    if isinstance(value, bool) and bool not in kinds:
        fits = False
    else:
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        wanted = " or ".join(kind_words(kind) for kind in kinds if kind is not type(None))
        raise ConfigError(f"{name}={excerpt(value)} is impossible.", f"It must be {wanted}.")
    return None


def check_at_least(name: str, value: float | None, least: int | None) -> None:
    """Check that a number is at least `least`, or above 0 if `least` is None.

    Raises:
        ConfigError: it is not.
    """
    if value is not None and (value <= 0 if least is None else value < least):
        hint = f"It must be {'above 0' if least is None else f'at least {least}'}."
        raise ConfigError(f"{name}={excerpt(value)} is impossible.", hint)


def check_fraction(name: str, value: float | None, *, with_one: bool) -> None:
    """Check that a number is at least 0 and below 1, or at most 1 `with_one`.

    Raises:
        ConfigError: it is not.
    """
    if value is not None and not 0 <= value < 1 and not (value == 1 and with_one):
        near = "0" if value < 0 else "0.99"
        raise ConfigError(f"{name}={excerpt(value)} is impossible.", f"It must be a fraction: {near} is the nearest.")


def check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Check that a setting is one of some names.

    Raises:
        ConfigError: it is not; the message has the nearest name.
    """
    if value not in known:
        raise ConfigError(f"There is no {name} {excerpt(value)}.", nearest(value, known, cutoff=0.3))
