"""Checks of values that were read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from saekit.errors import InterventionError


def keyed(data: Any, what: str, required: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Raise InterventionError unless `data` is a mapping with all of the required keys and no unknown one."""
    if not isinstance(data, Mapping):
        raise InterventionError(f"{what} is {data!r:.80}, not an object with named values.")
    if missing := sorted(required - data.keys()):
        raise InterventionError(f"{what} lacks {', '.join(missing)}.")
    if unknown := sorted(map(str, data.keys() - required - optional)):
        raise InterventionError(
            f"{what} has unknown values: {', '.join(unknown):.200}.", f"Known: {', '.join(sorted(required | optional))}."
        )


def text(value: Any, what: str) -> str:
    """`value` if it is text; InterventionError otherwise."""
    if not isinstance(value, str):
        raise InterventionError(f"{what} is {value!r:.80}, not text.")
    return value


def numbers(value: Any, what: str, depth: int = 2) -> Any:
    """`value` if it is a number or a list of numbers, nested at most `depth` times; InterventionError otherwise."""
    if isinstance(value, list) and depth:
        for each in cast("Sequence[Any]", value):
            numbers(each, what, depth - 1)
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InterventionError(f"{what} is {value!r:.80}, not a number or a list of numbers.")
    try:
        float(value)
    except OverflowError as error:
        raise InterventionError(f"{what} has a number that is too large.") from error
    return value
