"""Learning-rate schedules. A new schedule is one function and one row, here or registered by a plugin (:mod:`saekit.plugins`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from saekit.plugins import Registry


class Place(NamedTuple):
    """Where a run stands at a step.

    Attributes:
        done: share of the run's tokens that are read after this step.
        left: share of the run's tokens that were unread before this step. It is above 0 at the last step, which still moves.
        warmup, decay: the settings of these names.
    """

    done: float
    left: float
    warmup: float
    decay: float

    @property
    def rise(self) -> float:
        """Linear warm-up: from 0 to 1 over `warmup` of the run, and above 1 afterwards."""
        return self.done / self.warmup if self.warmup else 1.0


def linear(place: Place) -> float:
    """Linear warm-up, constant, linear decay to 0 over the last `decay` of the run."""
    fall = place.left / place.decay if place.decay else 1.0
    return min(1.0, place.rise, fall)


def cosine(place: Place) -> float:
    """Linear warm-up, then half a cosine from 1 to 0 over the rest of the run (arXiv 1608.03983, without restarts)."""
    rest = 1 - place.warmup
    share = min(1.0, max(0.0, 1 - place.left / rest)) if rest > 0 else 0.0
    return min(1.0, place.rise) * 0.5 * (1 + math.cos(math.pi * share))


def constant(place: Place) -> float:
    """Linear warm-up, then constant."""
    return min(1.0, place.rise)


SCHEDULES: Registry[Callable[[Place], float]] = Registry(
    "learning-rate schedule", {"linear": linear, "cosine": cosine, "constant": constant}
)
"""Name -> function that gives the learning rate as a factor of its peak."""
