"""Training of dictionaries: one file per architecture's objective, one loop for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.activations.loader.data import Source
    from saekit.names.site_map import Route, SiteMap
    from trainers.loop.train import train, train_all
    from trainers.objectives.base import OBJECTIVES
    from trainers.settings.config import TrainConfig
    from trainers.settings.job import Plan, TrainJob
    from trainers.settings.sweep import plans, read_sweep

__all__ = [
    "OBJECTIVES",
    "Plan",
    "Route",
    "SiteMap",
    "Source",
    "TrainConfig",
    "TrainJob",
    "plans",
    "read_sweep",
    "train",
    "train_all",
]

# Loaded when first used: the command line reads the settings, and must not wait for torch.
__getattr__ = attributes(
    __name__,
    {
        "OBJECTIVES": "trainers.objectives.base",
        "Plan": "trainers.settings.job",
        "Route": "saekit.names.site_map",
        "SiteMap": "saekit.names.site_map",
        "Source": "saekit.activations.loader.data",
        "TrainConfig": "trainers.settings.config",
        "TrainJob": "trainers.settings.job",
        "plans": "trainers.settings.sweep",
        "read_sweep": "trainers.settings.sweep",
        "train": "trainers.loop.train",
        "train_all": "trainers.loop.train",
    },
)
