"""Training of dictionaries: one file per architecture's objective, one loop for all."""

from trainers.config import TrainConfig
from trainers.feed import Source
from trainers.loop import train, train_all
from trainers.objectives import OBJECTIVES
from trainers.plan import Plan
from trainers.route import Route

__all__ = ["OBJECTIVES", "Plan", "Route", "Source", "TrainConfig", "train", "train_all"]
