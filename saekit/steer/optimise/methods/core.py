"""Tuning outside of the core region, so that what the model knows is kept in a continued fine-tuning.

The core are the weights with the largest |theta * dL/dtheta| on neutral text, the first-order change of the loss when a weight is
removed (as in "Unveiling Linguistic Regions in Large Language Models", Zhang et al. 2024, arXiv 2402.14700). They are frozen.
"""

from __future__ import annotations

from saekit.errors import ConfigError
from saekit.steer.optimise.gradients import largest, mean_gradients
from saekit.steer.optimise.loop import TuneSettings
from saekit.steer.optimise.masks import WeightMask, matrices_of, trainable
from saekit.steer.optimise.objectives import texts
from saekit.steer.optimise.tuning import Problem, Tuned, tune_weights


def outside_core(problem: Problem, *, core: float = 0.05, batches: int = 4) -> Tuned:
    """Train the matrices of the blocks but for their core.

    Args:
        problem: what is tuned; its neutral texts define the core.
        core: share of each matrix that is frozen.
        batches: batches that the gradient is the mean of.

    Raises:
        ConfigError: there are no neutral texts, or the share is not between 0 and 1.
    """
    lm, settings = problem.lm, problem.settings or TuneSettings()
    if problem.neutral is None:
        raise ConfigError("The core is what neutral text depends on, and none is given.", "Give neutral texts.")
    if not 0 < core < 1:
        raise ConfigError(f"A core of {core} of each matrix leaves nothing to freeze or to train.", "Give a number like 0.05.")
    every = matrices_of(lm)
    loss = texts(lm, problem.neutral)
    grads = mean_gradients(lm, loss, every, batches=batches, batch=settings.batch, seed=settings.seed)
    weights = trainable(lm, every)
    frozen = WeightMask({name: largest((grad * weights[name].detach()).abs(), core) for name, grad in grads.items()})
    return tune_weights(problem, every - frozen, "outside_core", core=core)
