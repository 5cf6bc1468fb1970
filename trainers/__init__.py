"""Training of dictionaries: one file per architecture's objective, one loop for all."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.feed import Source
    from trainers.loop import train, train_all
    from trainers.objectives import OBJECTIVES
    from trainers.plan import Plan
    from trainers.route import Route
    from trainers.sweep import plans, read_sweep

__all__ = ["OBJECTIVES", "Plan", "Route", "Source", "TrainConfig", "plans", "read_sweep", "train", "train_all"]

_HOMES = {
    "OBJECTIVES": "trainers.objectives",
    "Plan": "trainers.plan",
    "Route": "trainers.route",
    "Source": "trainers.feed",
    "TrainConfig": "trainers.config",
    "plans": "trainers.sweep",
    "read_sweep": "trainers.sweep",
    "train": "trainers.loop",
    "train_all": "trainers.loop",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: the command line reads the settings, and must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'trainers' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
