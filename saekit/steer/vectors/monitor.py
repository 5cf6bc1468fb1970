"""Projection monitor: how far texts lie along a vector (Chen et al. 2025, arXiv 2507.21509)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.steer.vectors.data import FitData

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.vectors.vector import SteeringVector


def projections(
    lm: LanguageModel, vector: SteeringVector, texts: Sequence[str] | Sequence[Sequence[int]], *, batch_size: int = 16
) -> Tensor:
    """(N,) float64: mean over ordinary tokens of x . v / |v| for each text; NaN for a text without such a token.

    Raises:
        StoreMismatch, InterventionError: the vector is of another model or width.
    """
    vector.check(lm)
    direction_D = vector.values.double() / vector.values.double().norm()
    found = torch.full((len(texts),), torch.nan, dtype=torch.double)
    data = FitData(lm, lm.site(vector.site), texts, (), batch_size=batch_size)
    for chosen, acts_BTD, kept_BT in data.batches("positive"):
        for n, acts_TD, kept_T in zip(chosen, acts_BTD, kept_BT):
            found[n] = (acts_TD[kept_T].double() @ direction_D).mean() if kept_T.any() else torch.nan
    return found
