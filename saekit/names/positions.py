"""Positions: which tokens of a text an edit touches."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_args

from saekit.errors import ConfigError
from saekit.plugins import nearest

Policy = Literal["last+generated", "generated", "prompt", "last", "all"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
_FIRST = "+first"
_FARTHEST = 1 << 31
_PLACE = re.compile(r"\s*-?[0-9]{1,9}\s*")


@dataclass(frozen=True)
class TokenPositions:
    """Which tokens of a prompt, and of what is generated after it.

    One of the first three attributes is given. Places count the real tokens of a text from 0, pads not counted; -1 is the last
    token of the prompt.

    ::

        last+generated    the last token of the prompt and everything generated; also: generated, prompt, last, all
        all+first         a policy, and the first token of the context too
        0,3,-1            these places of every row
        4|2,3||           for each row its own places: 4 in the first row, 2 and 3 in the second, none in the third

    Policies leave BOS, other special tokens and the first token of a context alone; lists of places do not.

    Attributes:
        policy: one of :data:`POLICIES`.
        places: the same places for every row, in ascending order.
        rows: the places of each row; under `generate`, of each prompt.
        keep_first: with a policy, touch the first token of a context too, unless it is special. Otherwise it is left alone:
            it is an attention sink.

    Raises:
        ConfigError: not exactly one of the three is given, or there is no such policy.
    """

    policy: Policy | None = None
    places: tuple[int, ...] | None = None
    rows: tuple[tuple[int, ...], ...] | None = None
    keep_first: bool = False

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.policy, self.places, self.rows)) != 1 or self.rows == ():
            raise ConfigError("Positions are a policy, a list of places, or a list of places for each row.", "Give one of them.")
        if self.policy is None and self.keep_first:
            raise ConfigError("keep_first belongs to a policy.", "Name place 0 in the list instead.")
        if self.policy is not None and self.policy not in POLICIES:
            hint = nearest(self.policy, POLICIES) + " Or list places: 0,3,-1."
            raise ConfigError(f"There are no positions {self.policy!r}.", hint)
        if self.places is not None:
            object.__setattr__(self, "places", _sorted(self.places))
        if self.rows is not None:
            object.__setattr__(self, "rows", tuple(map(_sorted, self.rows)))

    @classmethod
    def parse(cls, given: Any) -> TokenPositions:
        """Read a text as above, a list of places, or a list of places for each row.

        Raises:
            ConfigError: `given` is of another kind, or names no policy.
        """
        if isinstance(given, TokenPositions):
            return given
        if isinstance(given, str):
            return cls._read(given)
        try:
            items = given.tolist() if hasattr(given, "tolist") else list(given)
            if items and all(isinstance(item, Iterable) and not isinstance(item, str) for item in items):
                return cls(rows=tuple(tuple(map(_integer, item)) for item in items))
            return cls(places=tuple(map(_integer, items)))
        except TypeError as error:
            hint = f"Give one of {', '.join(POLICIES)}, or a list of integers for all rows or for each."
            raise ConfigError(f"{given!r:.80} are no positions.", hint) from error

    @classmethod
    @cache
    def _read(cls, text: str) -> TokenPositions:
        rows = [[place for place in row.split(",") if place.strip()] for row in text.removesuffix("|").split("|")]
        if not text.strip() or not all(_PLACE.fullmatch(place) for row in rows for place in row):
            return cls(policy=cast("Policy", text.removesuffix(_FIRST)), keep_first=text.endswith(_FIRST))
        numbers = tuple(tuple(map(int, row)) for row in rows)
        return cls(rows=numbers) if "|" in text else cls(places=numbers[0])

    @classmethod
    def of_mask(cls, mask: Any) -> TokenPositions:
        """The places where `mask`, a list of booleans for each row or a (B, T) tensor or array, is true. Rows have no pads."""
        rows = mask.tolist() if hasattr(mask, "tolist") else mask
        return cls(rows=tuple(tuple(place for place, chosen in enumerate(row) if chosen) for row in rows))

    def __str__(self) -> str:
        if self.policy is not None:
            return self.policy + _FIRST * self.keep_first
        if self.places is not None:
            return ",".join(map(str, self.places)) or ","
        return "".join(",".join(map(str, row)) + "|" for row in self.rows or ())


def _integer(place: Any) -> int:
    return place if isinstance(place, bool) else operator.index(place)


def _sorted(places: Iterable[int]) -> tuple[int, ...]:
    given = tuple(places)
    if any(isinstance(place, bool) or not isinstance(place, int) or abs(place) >= _FARTHEST for place in given):
        raise ConfigError(f"{given!r:.80} are not positions.", "Give integers that count tokens of a prompt.")
    return tuple(sorted(set(given)))


Positions = str | Sequence[int] | Sequence[Sequence[int]] | TokenPositions
"""What stands for positions wherever they are asked for; see :class:`TokenPositions`."""


@dataclass(frozen=True)
class DefaultPositions:
    """A policy that holds unless the caller of `run` or `generate` names positions.

    As the default of a run: its policy holds for edits that name no positions. As the positions of an edit: its policy takes
    the place of the run's default policy. In a `run` without positions, every real token is touched all the same.
    """

    policy: Policy


@dataclass(frozen=True)
class EveryToken:
    """Every real token, also BOS and other special ones, whatever the default of the run is."""


@dataclass(frozen=True)
class AnyPositions:
    """The tokens that at least one of several choices names; None stands for the default of `run` or `generate`."""

    choices: tuple[Choice | None, ...]


Choice = Positions | DefaultPositions | AnyPositions | EveryToken
"""The positions of an edit, except None."""
GENERATION = DefaultPositions("last+generated")
"""The positions of `generate` and of measures of generations, where the caller names none."""


def check_positions(positions: Choice | None) -> None:
    """Raise ConfigError unless `positions` can be read as one of those, or is None."""
    if isinstance(positions, AnyPositions):
        for choice in positions.choices:
            check_positions(choice)
    elif isinstance(positions, DefaultPositions):
        TokenPositions(positions.policy)
    elif positions is not None and not isinstance(positions, EveryToken):
        TokenPositions.parse(positions)


def check_reached(positions: Choice | None, lengths: Sequence[int], new: int) -> None:
    """Check that each listed place is a token of some prompt, or one that may be generated and read after it.

    Args:
        positions: what an edit or `generate` was given.
        lengths: number of tokens of each prompt.
        new: most tokens that are generated. The model does not read the last of them.

    Raises:
        ConfigError: a place lies outside every text; if each row has its own places, outside its text.
    """
    if isinstance(positions, AnyPositions):
        for choice in positions.choices:
            check_reached(choice, lengths, new)
        return
    if positions is None or isinstance(positions, DefaultPositions | EveryToken) or not lengths:
        return
    parsed = TokenPositions.parse(positions)
    listed = [(place, max(lengths)) for place in parsed.places or ()]
    listed += [(place, length) for row, length in zip(parsed.rows or (), lengths) for place in row]
    for place, length in listed:
        end = length + new - 1
        if not -length <= place < end:
            prompt = "the prompt" if len(set(lengths)) == 1 or parsed.rows is not None else "the longest prompt"
            raise ConfigError(
                f"There is no token at position {place}: {prompt} has {length} tokens, and at most {new} more are generated.",
                f"Positions can be from 0 to {end - 1}, or from -{length} to -1, which is the last token of the prompt.",
            )
