"""The direction of a logistic probe between the two sides."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saekit.steer.vectors.data import FitData


def probe(data: FitData) -> Tensor:
    """(width,) weights of a logistic regression on standardised text means, in the units of the activations.

    The length is that of the mean difference of the texts, so that methods can be compared at one strength. L2 with
    C = `c` (1.0), classes weighted alike.
    """
    from sklearn.linear_model import LogisticRegression

    sides = [torch.stack(list(means.values())).numpy() for means in data.text_means]
    x_ND, label_N = np.concatenate(sides), np.repeat([1, 0], [len(side) for side in sides])
    size_D = x_ND.std(0)
    size_D = np.where(size_D > 0, size_D, 1.0)
    strength = float(data.option("c", 1.0, (int, float)))
    fitted = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced").fit((x_ND - x_ND.mean(0)) / size_D, label_N)
    weight_D = fitted.coef_[0] / size_D
    data.found["accuracy_on_fitted_texts"] = float(fitted.score((x_ND - x_ND.mean(0)) / size_D, label_N))
    length = np.linalg.norm(sides[0].mean(0) - sides[1].mean(0))
    return torch.from_numpy(weight_D * (length / np.linalg.norm(weight_D))).float()
