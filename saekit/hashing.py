"""Hashes of numbers that are the same on every machine and in every version."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64, for compiled code that cannot call :func:`splitmix64`."""


def splitmix64(numbers: ArrayLike) -> NDArray[np.uint64]:
    """Hash 64-bit integers by SplitMix64 (Steele, Lea & Flood 2014). Hashes of neighbours are independent.

    Args:
        numbers: integers of any shape.
    """
    x = np.asarray(numbers).astype(np.uint64) + np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))
