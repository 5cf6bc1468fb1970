"""Training of dictionaries: one file per architecture's objective, one loop for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.feed import Source
    from trainers.loop import train, train_all
    from trainers.objectives import OBJECTIVES
    from trainers.plan import Plan
    from trainers.route import Route
    from trainers.sweep import plans, read_sweep

__all__ = ["OBJECTIVES", "Plan", "Route", "Source", "TrainConfig", "plans", "read_sweep", "train", "train_all"]

# Loaded when first used: the command line reads the settings, and must not wait for torch.
__getattr__ = attributes(
    __name__,
    {
        "OBJECTIVES": "trainers.objectives",
        "Plan": "trainers.plan",
        "Route": "trainers.route",
        "Source": "trainers.feed",
        "TrainConfig": "trainers.config",
        "plans": "trainers.sweep",
        "read_sweep": "trainers.sweep",
        "train": "trainers.loop",
        "train_all": "trainers.loop",
    },
)
