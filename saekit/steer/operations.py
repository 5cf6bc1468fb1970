"""The operations of steering: what each does to the coefficients of units, and how a user asks for it.

An operation is one function and one row of :data:`OPERATIONS`. A plugin adds one by::

    OPERATIONS.register("halve", Operation(lambda current, amounts: current / 2, order=2, strength=1.0, fixed=True))

after which `intervene("halve", ...)`, saved interventions and `saekit steer --op halve` know it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from saekit.names.positions import Policy


@dataclass(frozen=True)
class Operation:
    """One operation on coefficients.

    Attributes:
        apply: given the current coefficients and the amounts, both (N, units, *unit_shape) and N possibly 1 in the amounts,
            returns the new coefficients.
        order: changes of one unit at one token are made in ascending order, whatever order they were given in.
        merge: makes the amounts of two changes of one unit one amount. Without it the operation is exclusive: a unit may have
            one exclusive change of an order at a token.
        reads: False where the result is current + amounts, so that the current coefficients need not be known.
        factor: whether an amount is a plain number even for units whose coefficient is a vector.
        by_position: whether amounts are listed by position instead of by prompt.
        drawn: whether amounts are a list, of which each token gets one at random. The strength is the seed.
        length: whether an amount is a number with a unit even for units whose coefficient is a vector: it bounds the length.
        onto: whether the coefficient is that of the activation along the vector which the unit writes. A neuron or a feature then
            stands for its direction, whether it fires or not.
        strength: the strength where none is given, as text or number; None where one is required.
        fixed: whether a strength other than that may not be given.
        unit: unit of a strength that is written without one on the command line.
        positions: default positions, for operations that `generate` should not restrict to the last and the generated tokens.
        named: whether :func:`saekit.steer.intervene` and the command line can make it from its name and a strength.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    order: int
    merge: Callable[[Tensor, Tensor], Tensor] | None = None
    reads: bool = True
    factor: bool = False
    by_position: bool = False
    drawn: bool = False
    length: bool = False
    onto: bool = False
    strength: str | float | None = None
    fixed: bool = False
    unit: str = "max"
    positions: Policy | None = None
    named: bool = True


def _set(current: Any, amounts: Any) -> Any:
    return amounts


def _add(current: Any, amounts: Any) -> Any:
    return current + amounts


def _scale(current: Any, amounts: Any) -> Any:
    return amounts * current


def _cap(current: Any, amounts: Any) -> Any:
    """The nearest coefficient that is at most `amounts`; for vectors, at most so long."""
    if current.ndim == 2:
        return current.minimum(amounts)
    return current * (amounts / _length(current)).clamp(0, 1)


def _floor(current: Any, amounts: Any) -> Any:
    """The nearest coefficient that is at least `amounts`; for vectors, at least so long. A zero vector stays."""
    if current.ndim == 2:
        return current.maximum(amounts)
    return current * (amounts / _length(current)).clamp_min(1)


def _length(vectors: Any) -> Any:
    lengths = vectors.flatten(2).norm(dim=2).clamp_min(1e-30)
    return lengths.reshape(*lengths.shape, *[1] * (vectors.ndim - 2))


OPERATIONS: Registry[Operation] = Registry(
    "operation",
    {
        "ablate": Operation(_set, order=0, strength=0.0, fixed=True, positions="all"),
        "mean": Operation(_set, order=0, strength="1mean", fixed=True, positions="all"),
        "resample": Operation(_set, order=0, drawn=True, strength=0.0, unit="raw", positions="all"),
        "project-out": Operation(_set, order=0, onto=True, strength=0.0, fixed=True, positions="all"),
        "clamp": Operation(_set, order=1, strength="0.5norm"),
        "patch": Operation(_set, order=1, by_position=True, named=False),
        "scale": Operation(_scale, order=2, merge=lambda a, b: a * b, factor=True, unit="raw"),
        "add": Operation(_add, order=3, merge=lambda a, b: a + b, reads=False, strength="0.5norm"),
        "cap": Operation(_cap, order=4, merge=lambda a, b: a.minimum(b), length=True),
        "floor": Operation(_floor, order=5, merge=lambda a, b: a.maximum(b), length=True),
    },
)


def named() -> tuple[str, ...]:
    """The operations that can be asked for by name and strength."""
    return tuple(name for name, operation in OPERATIONS.items() if operation.named)
