"""Where in the prompts objects are changed: each place becomes one object in the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from saekit.errors import ConfigError
from saekit.tasks import Task

Columns = tuple[int, ...] | None
"""Positions of one prompt, counted without pads; None stands for all its tokens."""
WherePositions = str | Sequence[int] | None
"""What methods take as `positions`: "each", "last", the name of a span, positions from 0, or None."""


class Place(NamedTuple):
    """A place that is changed as a whole.

    name: what refs carry in brackets: None for all tokens.
    columns: for each prompt the positions; an empty tuple where the prompt has no such place.
    """

    name: str | None
    columns: tuple[Columns, ...]


def places_of(task: Task, positions: WherePositions) -> list[Place]:
    """The places that `positions` means.

    Args:
        task: the prompts.
        positions: None: all tokens of a prompt together. "each": every position by itself, up to the end of the longest prompt.
            "last" or the name of a span: those tokens together. A sequence of integers from 0: each by itself.

    Raises:
        ConfigError: a position is not in every prompt, or there is no span of that name.
    """
    if positions is None:
        return [Place(None, (None,) * len(task))]
    if positions == "each":
        longest = max(map(len, task.clean))
        return [Place(str(t), tuple((t,) if t < len(row) else () for row in task.clean)) for t in range(longest)]
    names = [positions] if isinstance(positions, str) else list(dict.fromkeys(positions))
    if not names:
        raise ConfigError("No positions are given.", 'Give "each", "last", the name of a span, or positions from 0.')
    return [Place(str(name), tuple(map(tuple, task.positions(name)))) for name in names]


def named_place(task: Task, position: str | None) -> Place:
    """The place that a ref with this position is in; raises as :func:`places_of`."""
    return places_of(task, position)[0]


def recorded(positions: WherePositions) -> str | list[int] | None:
    """`positions` as JSON values."""
    return positions if isinstance(positions, str | None) else list(positions)
