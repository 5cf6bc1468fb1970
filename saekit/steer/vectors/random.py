"""A control: a random direction of the length of the mean difference."""

from __future__ import annotations

import torch
from torch import Tensor

from saekit.steer.vectors.data import FitData
from saekit.steer.vectors.diff_mean import diff_mean


def random(data: FitData) -> Tensor:
    """(width,) uniform on the sphere whose radius is the length of DiffMean; `seed` (0) chooses it."""
    length = diff_mean(data).norm()
    generator = torch.Generator().manual_seed(data.option("seed", 0, int))
    direction_D = torch.randn(data.lm.width(data.site), generator=generator)
    return direction_D * (length / direction_D.norm())
