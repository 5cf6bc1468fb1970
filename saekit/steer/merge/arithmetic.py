"""Task arithmetic (Ilharco et al. 2023): theta = theta_base + scale * sum_i w_i tau_i with tau_i = theta_i - theta_base.

A negative weight makes a model forget a skill.
"""

from __future__ import annotations

from collections.abc import Callable

from saekit.steer.merge.job import Job, Piece, Step, total


def arithmetic(job: Job) -> Callable[[Piece], Step]:
    """The sum of the weighted task vectors. Option: scale (1; the paper finds 0.4 good for eight tasks)."""
    scale = job.scale

    def merge(piece: Piece) -> Step:
        used = job.weighted(piece.deltas)
        return Step(scale * total(used), used)

    return merge
