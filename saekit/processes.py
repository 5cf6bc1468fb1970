"""Which of the processes that torchrun started this one is. Nothing heavy is imported."""

from __future__ import annotations

import os


def world() -> int:
    """How many there are; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", 0))


def leads() -> bool:
    """Whether this is the one that writes files and speaks."""
    return rank() == 0
