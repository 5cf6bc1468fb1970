"""Training of dictionaries: one file per architecture's objective, one loop for all."""

from trainers.config import TrainConfig
from trainers.loop import Source, train
from trainers.objectives import OBJECTIVES
from trainers.route import Route

__all__ = ["OBJECTIVES", "Route", "Source", "TrainConfig", "train"]
