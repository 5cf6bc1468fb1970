"""Targeted optimisation: tuning of the weights in a mask, and of small changes of activations, by one training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.optimise.activation_edit import ActivationEdit
    from saekit.steer.optimise.loop import History, TuneSettings, train
    from saekit.steer.optimise.masked import MaskedWeights
    from saekit.steer.optimise.masks import WeightMask, parameters
    from saekit.steer.optimise.objectives import OBJECTIVES, ObjectiveRow, objective
    from saekit.steer.optimise.tuning import TUNERS, Problem, Tuned, Tuner, tune

_HOMES = {
    "saekit.steer.optimise.activation_edit": ("ActivationEdit",),
    "saekit.steer.optimise.loop": ("History", "TuneSettings", "train"),
    "saekit.steer.optimise.masked": ("MaskedWeights",),
    "saekit.steer.optimise.masks": ("WeightMask", "parameters"),
    "saekit.steer.optimise.objectives": ("OBJECTIVES", "ObjectiveRow", "objective"),
    "saekit.steer.optimise.tuning": ("TUNERS", "Problem", "Tuned", "Tuner", "tune"),
}

__all__ = [
    "OBJECTIVES",
    "TUNERS",
    "ActivationEdit",
    "History",
    "MaskedWeights",
    "ObjectiveRow",
    "Problem",
    "TuneSettings",
    "Tuned",
    "Tuner",
    "WeightMask",
    "objective",
    "parameters",
    "train",
    "tune",
]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
