"""DiffMean: the difference of mean activations, v = mu+ - mu- (Marks and Tegmark 2023; CAA, Rimsky et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from saekit.steer.vectors.data import FitData, Side


def diff_mean(data: FitData) -> Tensor:
    """(width,) mean over ordinary tokens of the positive texts minus that of the negative ones."""
    return _mean(data, "positive") - _mean(data, "negative")


def _mean(data: FitData, side: Side) -> Tensor:
    total, count = torch.zeros((), dtype=torch.double), 0
    for rows_ND in data.tokens(side):
        total, count = total + rows_ND.double().sum(0), count + len(rows_ND)
    return (total / count).float()
