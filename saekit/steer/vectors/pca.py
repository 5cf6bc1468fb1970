"""PCA of differences: the first principal component of the differences of pairs (Zou et al. 2023, arXiv 2310.01405)."""

from __future__ import annotations

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.steer.vectors.data import FitData


def pca(data: FitData) -> Tensor:
    """(width,) first right singular vector of the (pairs, width) differences of text means, not centred.

    The sign makes the mean difference positive along it. The length is that component of the mean difference. Pairs of which a
    text has no ordinary token are left out.

    Raises:
        ConfigError: the sides are not pairs.
    """
    if len(data.positive) != len(data.negative):
        raise ConfigError(
            f"PCA of differences needs pairs; there are {len(data.positive)} positive and {len(data.negative)} negative texts.",
            "Give as many of each, or use --method diffmean.",
        )
    positive, negative = data.text_means
    differences_ND = torch.stack([positive[n] - negative[n] for n in sorted(positive.keys() & negative.keys())])
    first_D = torch.linalg.svd(differences_ND, full_matrices=False).Vh[0]
    data.found["pairs"] = len(differences_ND)
    return (first_D * (differences_ND.mean(0) @ first_D)).float()
