"""DARE (Yu et al. 2024): drop each entry of a task vector with probability p, and rescale the others by 1 / (1 - p).

The expectation over seeds is the task vector. Each model and tensor has its own random numbers, which depend on the seed, the
position of the model and the name of the tensor, and not on how tensors are divided among files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from saekit.steer.merge.job import Job, Piece, Step, total


def dare(job: Job) -> Callable[[Piece], Step]:
    """Drop, rescale, and add as task arithmetic does. Options: drop (0.5, the probability p), scale (1), seed (0)."""
    scale, thinned = job.scale, dropping(job)

    def merge(piece: Piece) -> Step:
        used = job.weighted(thinned(piece))
        return Step(scale * total(used), used)

    return merge


def dropping(job: Job) -> Callable[[Piece], list[Tensor]]:
    """A function that drops and rescales the task vectors of a piece. Options: drop, seed."""
    drop = job.option("drop", 0.5, low=0, high=0.9999)
    seed = int(job.option("seed", 0, low=0, high=2**63 - 1))

    def thinned(piece: Piece) -> list[Tensor]:
        return [delta * _kept(delta, drop, f"{seed}/{i}/{piece.name}") / (1 - drop) for i, delta in enumerate(piece.deltas)]

    return thinned


def _kept(delta: Tensor, drop: float, key: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.rand(delta.shape, generator=torch.Generator().manual_seed(seed)) >= drop
