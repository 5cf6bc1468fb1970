"""NeFT, neuron-level fine-tuning: Xu et al. 2024, "Let's Focus on Neuron: Neuron-Level Supervised Fine-tuning for Large Language
Models", arXiv 2403.11621.

A neuron is a row of a weight matrix. After a short fine-tuning of all rows, those whose cosine with their former selves is lowest
are the sensitive ones. They alone are trained, from the original weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saekit.lm.layout.matrices import matrices
from saekit.steer.optimise.loop import train
from saekit.steer.optimise.masked import MaskedWeights
from saekit.steer.optimise.masks import WeightMask, matrices_of
from saekit.steer.optimise.tuning import Problem, Tuned, short, tune_weights


def neft(problem: Problem, *, first_steps: int = 20) -> Tuned:
    """Train the rows that a short fine-tuning turns most; `fraction` (default 0.03) of all rows of the blocks' matrices.

    Args:
        problem: what is tuned.
        first_steps: steps of the fine-tuning that the rows are chosen by.
    """
    lm, first = problem.lm, short(problem, first_steps)
    every = matrices_of(lm)
    adjustment = MaskedWeights(lm, every)
    names = {id(weight): name for name, weight in lm.model.named_parameters()}
    rows = [(names[id(each.module.weight)], each) for each in matrices(lm) if names[id(each.module.weight)] in every.parts]
    before = {name: each.weight_OI.clone() for name, each in rows}
    with adjustment.training():
        train(lm, adjustment, first.loss, first.neutral, first.settings, progress=problem.progress)
        cosines = [row_cosines(before[name], each.weight_OI) for name, each in rows]
    share = 0.03 if problem.fraction is None else problem.fraction
    k = max(1, int(share * sum(map(len, cosines))))
    chosen = torch.zeros(sum(map(len, cosines)), dtype=torch.bool)
    chosen[torch.cat(cosines).topk(k, largest=False).indices] = True
    parts = {}
    for (name, each), own in zip(rows, chosen.split([len(cosine) for cosine in cosines])):
        mask = own[:, None].expand(each.weight_OI.shape)
        parts[name] = (mask.T if each.transposed else mask).clone().to(before[name].device)
    return tune_weights(problem, WeightMask(parts), "neft", fraction=share)


def row_cosines(before_OI: Tensor, after_OI: Tensor) -> Tensor:
    """(out,) float64 cosine of each row with its former self, on the CPU."""
    return torch.cosine_similarity(before_OI.double(), after_OI.double(), dim=1).cpu()
