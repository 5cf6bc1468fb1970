"""SIFT, sparse increment fine-tuning: Song et al. 2024, "Sparse is Enough in Fine-tuning Pre-trained Large Language Models",
arXiv 2312.11875.

Gradients of pretrained models are nearly sparse. The entries with the largest |dL/dW| at the start, the same share of every
matrix, are the only ones that are trained; they stay the same throughout.
"""

from __future__ import annotations

from saekit.steer.optimise.gradients import largest, mean_gradients
from saekit.steer.optimise.loop import TuneSettings
from saekit.steer.optimise.masks import WeightMask, matrices_of
from saekit.steer.optimise.tuning import Problem, Tuned, tune_weights


def sift(problem: Problem, *, batches: int = 4) -> Tuned:
    """Train the entries of the blocks' matrices with the largest gradients; `fraction` (default 0.01) of each matrix.

    Args:
        problem: what is tuned.
        batches: batches that the gradient is the mean of.
    """
    lm, settings = problem.lm, problem.settings or TuneSettings()
    every = matrices_of(lm)
    grads = mean_gradients(lm, problem.loss, every, batches=batches, batch=settings.batch, seed=settings.seed)
    share = 0.01 if problem.fraction is None else problem.fraction
    mask = WeightMask({name: largest(grad.abs(), share) for name, grad in grads.items()})
    return tune_weights(problem, mask, "sift", fraction=share)
