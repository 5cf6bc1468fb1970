"""Spherical interpolation of two models, tensor by tensor (Shoemake 1985).

theta = sin((1 - t) omega) / sin(omega) theta_1 + sin(t omega) / sin(omega) theta_2, with omega the angle between the weights of a
tensor. Nearly parallel tensors are interpolated linearly, as the formula is then 0 / 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from saekit.errors import ConfigError
from saekit.steer.merge.job import Job, Piece, Step

_PARALLEL = 1e-4
"""Smallest angle in radians that counts as an angle: float32 resolves smaller ones badly."""


def slerp(job: Job) -> Callable[[Piece], Step]:
    """The interpolation. Option: t (0.5), 0 for the first model and 1 for the second.

    Raises:
        ConfigError: there are not two models, or t is not in [0, 1].
    """
    if len(job.models) != 2:
        raise ConfigError(f"slerp interpolates two models, and {len(job.models)} are given.", "Use --method linear.")
    t = job.option("t", 0.5, low=0, high=1)

    def merge(piece: Piece) -> Step:
        first, second = (piece.base.double() + delta for delta in piece.deltas)
        return Step((between(first, second, t) - piece.base).to(piece.base.dtype), piece.deltas)

    return merge


def between(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The tensor at the share `t` of the arc from `first` to `second`."""
    product = float(first.norm() * second.norm())
    omega = math.acos(max(-1.0, min(1.0, float((first * second).sum()) / product))) if product else 0.0
    if omega < _PARALLEL or math.pi - omega < _PARALLEL:
        return (1 - t) * first + t * second
    return (math.sin((1 - t) * omega) * first + math.sin(t * omega) * second) / math.sin(omega)
