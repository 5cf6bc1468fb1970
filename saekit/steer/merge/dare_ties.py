"""DARE with TIES (Yu et al. 2024, section 3.3): entries are dropped at random in place of being trimmed, then TIES goes on.

Signs are elected for each entry, and the result is the mean of the models that agree.
"""

from __future__ import annotations

from collections.abc import Callable

from saekit.steer.merge.dare import dropping
from saekit.steer.merge.job import Job, Piece, Step
from saekit.steer.merge.ties import disjoint_mean


def dare_ties(job: Job) -> Callable[[Piece], Step]:
    """Drop, rescale, elect, merge. Options: drop (0.5), scale (1), seed (0)."""
    scale, thinned = job.scale, dropping(job)

    def merge(piece: Piece) -> Step:
        used = job.weighted(thinned(piece))
        return Step(scale * disjoint_mean(used, job.weights), used)

    return merge
