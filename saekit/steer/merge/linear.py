"""The weighted mean of weights (model soups, Wortsman et al. 2022): theta = sum_i w_i theta_i / sum_i w_i."""

from __future__ import annotations

from collections.abc import Callable

from saekit.errors import ConfigError
from saekit.steer.merge.job import Job, Piece, Step, total


def linear(job: Job) -> Callable[[Piece], Step]:
    """The weighted mean.

    Raises:
        ConfigError: the weights sum to zero.
    """
    whole = sum(job.weights)
    if abs(whole) < 1e-9:
        raise ConfigError("The weights of the models sum to zero.", "A mean needs another sum; --method arithmetic does not.")

    def merge(piece: Piece) -> Step:
        used = job.weighted(piece.deltas)
        return Step(total(used) / whole, used)

    return merge
