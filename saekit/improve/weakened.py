"""A model that errs: seeded noise in its weights, for recipes that repair or watch errors which the model itself lacks."""

from __future__ import annotations

import torch

from saekit.evaluate.changed import Change
from saekit.improve.target import Target
from saekit.improve.trial import Trial
from saekit.steer.optimise.masks import matrices_of
from saekit.steer.weights import WeightDelta, edit_facts

SCALES = (0.2, 0.3, 0.4, 0.5, 0.7)
"""Standard deviations of the noise that are tried, relative to that of each matrix."""


def weakened(trial: Trial, target: Target, at_most: float) -> tuple[Change, float]:
    """Noise in the matrices of the blocks, with the least scale at which the mean of the target is at most `at_most`.

    Args:
        trial: the recipe's run.
        target: measured on data for fitting.
        at_most: a share; where every scale leaves more, the largest scale is taken.

    Returns:
        the noise, and its scale.
    """
    for scale in SCALES[1:2] if trial.quick else SCALES:
        change = noise(trial, scale)
        if trial.quick or float(trial.measure(target, change).mean()) <= at_most:
            break
    return change, scale


def noise(trial: Trial, scale: float) -> Change:
    """Gaussian noise in the matrices of the blocks, `scale` times the standard deviation of each."""
    generator = torch.Generator().manual_seed(trial.seed)
    weights = dict(trial.lm.model.named_parameters())
    changes = {}
    for name in matrices_of(trial.lm).parts:
        weight = weights[name].detach().float().cpu()
        changes[name] = scale * weight.std() * torch.randn(weight.shape, generator=generator)
    return Change(deltas=(WeightDelta(changes, edit_facts(trial.lm, "noise", scale=scale, seed=trial.seed)),))
