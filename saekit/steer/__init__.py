"""Steering: interventions on the coefficients of any space, their strengths, and what they do to generations."""

from saekit.lazy import attributes
from saekit.steer.amplitude import ablate, add, clamp, intervene, patch, scale
from saekit.steer.change import Change
from saekit.steer.control import RandomControl
from saekit.steer.intervention import Intervention, combine
from saekit.steer.measure import Measures, measure
from saekit.steer.strength import DEFAULT, FeatureStats, Strength, parse_feature
from saekit.steer.target import Vector

__all__ = [
    "DEFAULT",
    "Change",
    "Comparison",
    "FeatureStats",
    "Intervention",
    "Measures",
    "RandomControl",
    "Strength",
    "Vector",
    "ablate",
    "add",
    "clamp",
    "combine",
    "compare",
    "intervene",
    "measure",
    "parse_feature",
    "patch",
    "scale",
]

# Comparisons are measurements: they live in saekit.evaluate, above this package.
__getattr__ = attributes(
    __name__, {"Comparison": "saekit.evaluate.steering.compare", "compare": "saekit.evaluate.steering.compare"}
)
