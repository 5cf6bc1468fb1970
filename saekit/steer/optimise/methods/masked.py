"""Masked fine-tuning of the weights of given objects, and full fine-tuning as its control."""

from __future__ import annotations

from saekit.steer.optimise.masks import WeightMask
from saekit.steer.optimise.tuning import Problem, Tuned, tune_weights


def masked(problem: Problem) -> Tuned:
    """Train theta + M * dtheta, with M the weights of the objects (of the first ones that fit into the fraction)."""
    assert problem.objects is not None, "tune"
    return tune_weights(problem, WeightMask.of(problem.lm, problem.objects, fraction=problem.fraction), "masked")


def full(problem: Problem) -> Tuned:
    """Train every weight."""
    return tune_weights(problem, WeightMask.everything(problem.lm), "full")
