"""Strengths: numbers in a unit that is comparable between features, sites and models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.names.ref import FORMS
from saekit.names.site import Site
from saekit.steer.operations import OPERATIONS

# Units of strength. A strength of 1 in each unit stands for:
#   raw       a coefficient of 1 (for `scale`, a factor of 1)
#   norm      the coefficient at which the unit writes a vector as long as the median activation of ordinary tokens at the site
#   max       the largest coefficient of the unit on a corpus
#   quantile  the largest positive coefficient of the unit; 0.5 stands for the median of the positive ones
#   mean      the mean coefficient of the unit over all ordinary tokens, the value that mean ablation sets
UNITS = ("raw", "norm", "max", "quantile", "mean")

_LARGEST = 3.4028234663852886e38
"""The largest float32: activations are float32 or shorter."""
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_STRENGTH = re.compile(rf"(?P<quantile>q)?(?P<value>{_NUMBER})(?P<unit>raw|norm|max|mean|q)?")


@dataclass(frozen=True)
class Strength:
    """A number, or one number for each prompt of a batch, in one of :data:`UNITS`.

    Raises:
        InterventionError: a number is not finite in float32, a quantile is not from 0 to 1, or there is no such unit.
    """

    value: float | tuple[float, ...]
    unit: str = "raw"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise InterventionError(f"There is no unit of strength {self.unit!r:.40}.", f"Units: {', '.join(UNITS)}.")
        try:
            values = tuple(float(value) for value in self.values)
        except (TypeError, ValueError, OverflowError) as error:
            raise InterventionError(f"A strength of {self.value!r:.80} is not a number.", "Give a finite number.") from error
        if not values or not all(abs(value) <= _LARGEST for value in values):
            raise InterventionError(f"A strength of {self.value!r:.80} is not a finite float32 number.", "Give a finite number.")
        if self.unit == "quantile" and not all(0 <= value <= 1 for value in values):
            raise InterventionError(f"A quantile of {self.value} does not exist.", "Give a number from 0 to 1, like q0.99.")
        object.__setattr__(self, "value", values if isinstance(self.value, tuple) else values[0])

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers as a tuple."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    @classmethod
    def of(cls, strength: Strength | float | str | Tensor | Sequence[float | str]) -> Strength:
        """A strength from a number (raw), from text such as '0.5norm', from a list or tensor of these, or from itself.

        Raises:
            InterventionError: the value cannot be read as a strength, or the texts of a list have different units.
        """
        if isinstance(strength, Strength):
            return strength
        if isinstance(strength, str):
            return cls.parse(strength, default="raw")
        given = strength.tolist() if hasattr(strength, "tolist") else strength  # tensors and numpy's numbers
        try:
            if not isinstance(given, Sequence):
                return cls(float(given))
            each = [cls.parse(one, default="raw") if isinstance(one, str) else cls(float(one)) for one in given]
        except (TypeError, ValueError, OverflowError) as error:
            raise InterventionError(
                f"{strength!r:.80} is not a strength.", "Give a number, a text like 0.5norm, or a list."
            ) from error
        units = sorted({one.unit for one in each}) or ["raw"]
        if len(units) > 1:
            raise InterventionError(f"The strengths {given} are in different units: {', '.join(units)}.", "Give all in one.")
        return cls(tuple(value for one in each for value in one.values), units[0])

    @classmethod
    def parse(cls, text: str, *, default: str = "max") -> Strength:
        """Read '2' (in the `default` unit), '0.5norm', '3max', 'q.99', '1mean' or '4raw'.

        Raises:
            InterventionError: the text is in none of these forms.
        """
        match = _STRENGTH.fullmatch(text)
        if match is None or (match["quantile"] and match["unit"]):
            raise InterventionError(f"{text!r} is not a strength.", "Write it like 2, 0.5norm, 3max, q.99 or 4raw.")
        unit = "quantile" if match["quantile"] or match["unit"] == "q" else match["unit"] or default
        return cls(float(match["value"]), unit)

    def __str__(self) -> str:
        return ",".join(f"q{v:g}" if self.unit == "quantile" else f"{v:g}{self.unit}" for v in self.values)


DEFAULT = Strength(0.5, "norm")
"""The strength of clamp and add where none is given. It does not depend on how rare a feature is. Reports on larger models find
that steering works best near half the typical norm before fluency suffers. On a five-layer model of children's stories, it
raises the promoted tokens of as many features as 1.5 times their maximum does, at half the perplexity."""


def parse_feature(text: str, *, op: str = "clamp") -> tuple[str, Strength | None]:
    """Split '1042:0.5norm' into the name of the object and its strength, which is None where the text has none.

    The name may be a bare number or a ref with colons of its own ('feature:resid_post.3/1042:2', 'head:3.5'). A strength
    without a unit has the unit of the operation: the object's own maximum, or for "scale" a plain factor.

    Raises:
        ConfigError: there is no operation `op`.
        InterventionError: the text after the name is not a strength.
    """
    unit = OPERATIONS.find(op).unit
    name, colon, last = text.rpartition(":")
    if not colon or name in FORMS:
        return text, None
    return name, Strength.parse(last, default=unit)


class Wanted(NamedTuple):
    """What is written in short: an object, an operation, and a strength, which is None where none is written."""

    name: str
    op: str
    strength: Strength | None


def parse_change(text: str, *, op: str = "clamp") -> Wanted:
    """Split '1042:0.5norm', '1042:cap:2' or 'head:3.5:ablate' into an object, an operation and a strength.

    Args:
        op: the operation where the text names none. A strength without a unit has the unit of the operation.

    Raises:
        ConfigError: there is no operation `op`.
        InterventionError: the text after the name is neither an operation nor a strength.
    """
    OPERATIONS.find(op)
    head, colon, last = text.rpartition(":")
    if colon and last in OPERATIONS:
        return Wanted(head, last, None)
    before, inner, middle = head.rpartition(":")
    if inner and middle in OPERATIONS:
        return Wanted(before, middle, Strength.parse(last, default=OPERATIONS[middle].unit))
    name, strength = parse_feature(text, op=op)
    return Wanted(name, op, strength)


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of a unit on a corpus: the measures that the units of strength refer to.

    A feature of an AbsTopK dictionary fires in two directions. Its maximum and quantiles are those of the magnitude, and a
    negative strength sets the other direction.
    """

    max: float
    """Largest coefficient."""
    mean: float | Tensor = 0.0
    """Mean over all ordinary tokens, zeros included; a (d_head,) vector for a head."""
    quantiles: tuple[tuple[float, float], ...] = ()
    """(quantile, coefficient) pairs of the positive coefficients, ascending; other quantiles are interpolated linearly."""
    samples: Tensor | None = field(default=None, compare=False, repr=False)
    """Coefficients at tokens drawn at random, (S, *unit_shape): the same tokens for all units that were measured together."""

    @classmethod
    def measured(cls, values: Tensor, *, signed: bool = False) -> FeatureStats:
        """From the coefficients of a unit at every ordinary token: (N,), or (N, d_head) for a head.

        The maximum of a head is the largest norm; a head has no quantiles.

        Args:
            values: the coefficients.
            signed: the unit fires in two directions: maximum and quantiles are of magnitudes.

        Raises:
            InterventionError: there is no coefficient.
        """
        if not len(values):
            raise InterventionError("No token is left to measure a unit on.", "Give longer texts.")
        if values.ndim > 1:
            return cls(float(values.flatten(1).norm(dim=1).max()), values.double().mean(0))
        mean = float(values.double().mean())
        values = values.abs() if signed else values
        positive = values[values > 0].double()
        if not len(positive):
            return cls(float(values.max()), mean)
        grid = torch.linspace(0, 1, 201, dtype=torch.double)
        place = grid * (len(positive) - 1)
        ascending, below = positive.sort().values, place.floor().long()
        quantiles = ascending[below].lerp(ascending[place.ceil().long()], place - below)
        return cls(float(values.max()), mean, tuple(zip(grid.tolist(), quantiles.tolist())))

    def quantile(self, q: float) -> float:
        """The q-quantile of the positive coefficients.

        Raises:
            InterventionError: the known quantiles do not include it.
        """
        for (q0, v0), (q1, v1) in pairwise(self.quantiles):
            if q0 <= q <= q1:
                return v0 + (v1 - v0) * ((q - q0) / (q1 - q0) if q1 > q0 else 1.0)
        raise InterventionError(f"The {q:g} quantile is not known.", "The unit never fires, or its quantiles were not measured.")


# Sources of measures: a table, or a function that looks them up.
StatsSource = Mapping[Any, FeatureStats] | Callable[[Any], FeatureStats]
NormSource = Mapping[Site, float] | Callable[[Site], float]


def look_up(source: StatsSource | NormSource | None, key: Any, what: str) -> Any:
    """The measure of `key` in a :data:`StatsSource` or :data:`NormSource`.

    Raises:
        InterventionError: the measure is missing. No default takes its place.
    """
    found = source.get(key) if isinstance(source, Mapping) else None if source is None else source(key)
    if found is None:
        raise InterventionError(f"A strength in this unit needs {what} of {key}.", "Measure it on text: resolve(lm, texts=...).")
    return found
