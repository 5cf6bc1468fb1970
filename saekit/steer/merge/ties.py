"""TIES-Merging (Yadav et al. 2023, algorithm 1): trim, elect a sign for each entry, take the mean of those that agree.

The largest entries are those of the whole task vector, as in the paper. Some implementations trim each tensor by itself, which
keeps as large a share of a tensor that was hardly trained as of any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saekit.steer.merge.job import Job, Piece, Step, total

_BITS = 16


def ties(job: Job) -> Callable[[Piece], Step]:
    """Trim, elect, merge. Options: density (0.2, the share of entries kept), scale (1)."""
    density, scale = job.option("density", 0.2, low=1e-9, high=1), job.scale
    limits = thresholds(job, density) if density < 1 else [0.0] * len(job.models)
    job.found["thresholds"] = limits

    def merge(piece: Piece) -> Step:
        kept = [delta * (delta.abs().float() >= limit) for delta, limit in zip(piece.deltas, limits, strict=True)]
        used = job.weighted(kept)
        return Step(scale * disjoint_mean(used, job.weights), used)

    return merge


def disjoint_mean(used: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean over the models whose entry has the sign of the sum, weighted: sum w_i tau_i / sum |w_i|.

    Where the entries cancel exactly no sign is elected, and the result is 0.

    Args:
        used: the weighted entries w_i tau_i of each model.
        weights: w_i.
    """
    elected = total(used).sign()
    agree = [(each.sign() == elected) & (elected != 0) for each in used]
    whole = total([mask * abs(weight) for mask, weight in zip(agree, weights, strict=True)])
    summed = total([each * mask for each, mask in zip(used, agree, strict=True)])
    return summed / torch.where(whole > 0, whole, torch.ones_like(whole))


def thresholds(job: Job, density: float) -> list[float]:
    """For each model the largest t such that at least the share `density` of its task vector has |tau| >= t.

    The value is exact in float32 and needs two passes over the files and two histograms: bits of non-negative floats sort as the
    floats do, so the first pass counts the upper half of the bits, and the second the lower half in the one bin that matters.
    """
    low = 1 << _BITS
    upper = [torch.zeros(low // 2, dtype=torch.int64) for _ in job.models]
    for piece in job.pieces():
        for counts, delta in zip(upper, piece.deltas, strict=True):
            counts += torch.bincount((_bits(delta) >> _BITS), minlength=low // 2)
    wanted = math.ceil(density * int(upper[0].sum()))
    bins = [_bin(counts, wanted) for counts in upper]
    lower = [torch.zeros(low, dtype=torch.int64) for _ in job.models]
    for piece in job.pieces():
        for counts, delta, (chosen, _) in zip(lower, piece.deltas, bins, strict=True):
            bits = _bits(delta)
            counts += torch.bincount(bits[(bits >> _BITS) == chosen] & (low - 1), minlength=low)
    found = []
    for counts, (chosen, above) in zip(lower, bins, strict=True):
        rest, _ = _bin(counts, wanted - above)
        found.append(float(torch.tensor([(chosen << _BITS) + rest], dtype=torch.int32).view(torch.float32)))
    return found


def _bits(delta: Tensor) -> Tensor:
    return delta.abs().float().flatten().contiguous().view(torch.int32)


def _bin(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin of the `wanted`th largest value, and how many values lie in higher bins."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, wanted))
    return len(counts) - 1 - place, int(from_top[place] - counts.flip(0)[place])
