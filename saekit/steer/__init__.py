"""Steering: interventions on the coefficients of any space, and their strengths.

Comparisons and sweeps of interventions are measurements and live in :mod:`saekit.evaluate.steering`. This package gives
`compare` and `Comparison` under their former names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.amplitude import (
        ablate,
        add,
        cap,
        clamp,
        floor,
        for_prompts,
        intervene,
        patch,
        project_out,
        resample,
        scale,
    )
    from saekit.steer.change import Change
    from saekit.steer.condition import Condition
    from saekit.steer.control import RandomControl
    from saekit.steer.difference import mean_difference
    from saekit.steer.intervention import BoundIntervention, Intervention, combine
    from saekit.steer.measures import Measures, measure
    from saekit.steer.operations import OPERATIONS, Operation
    from saekit.steer.schedule import Schedule
    from saekit.steer.strength import DEFAULT, FeatureStats, Strength, parse_change, parse_feature
    from saekit.steer.target import Vector

_HOMES = {
    "saekit.steer.amplitude": (
        "ablate",
        "add",
        "cap",
        "clamp",
        "floor",
        "for_prompts",
        "intervene",
        "patch",
        "project_out",
        "resample",
        "scale",
    ),
    "saekit.steer.change": ("Change",),
    "saekit.steer.condition": ("Condition",),
    "saekit.steer.control": ("RandomControl",),
    "saekit.steer.difference": ("mean_difference",),
    "saekit.steer.intervention": ("BoundIntervention", "Intervention", "combine"),
    "saekit.steer.measures": ("Measures", "measure"),
    "saekit.steer.operations": ("OPERATIONS", "Operation"),
    "saekit.steer.schedule": ("Schedule",),
    "saekit.steer.strength": ("DEFAULT", "FeatureStats", "Strength", "parse_change", "parse_feature"),
    "saekit.steer.target": ("Vector",),
    # Above this package: named by string, so that nothing here imports it.
    "saekit.evaluate.steering.compare": ("Comparison", "compare"),
}

__all__ = [
    "DEFAULT",
    "OPERATIONS",
    "BoundIntervention",
    "Change",
    "Comparison",
    "Condition",
    "FeatureStats",
    "Intervention",
    "Measures",
    "Operation",
    "RandomControl",
    "Schedule",
    "Strength",
    "Vector",
    "ablate",
    "add",
    "cap",
    "clamp",
    "combine",
    "compare",
    "floor",
    "for_prompts",
    "intervene",
    "mean_difference",
    "measure",
    "parse_change",
    "parse_feature",
    "patch",
    "project_out",
    "resample",
    "scale",
]

# Loaded when first used: the command line looks up operations without loading torch.
__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
