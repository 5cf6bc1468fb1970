"""Trained steering vectors: the vector that, added at every ordinary token, makes positive texts most likely.

Subramani et al. 2022, "Extracting Latent Steering Vectors from Pretrained Language Models", arXiv 2205.05124, with one vector for
all positive texts.
"""

from __future__ import annotations

from torch import Tensor

from saekit.steer.optimise.activation_edit import ActivationEdit
from saekit.steer.optimise.loop import TuneSettings
from saekit.steer.optimise.methods.bias import vector
from saekit.steer.optimise.objectives import preference, texts
from saekit.steer.optimise.tuning import Problem
from saekit.steer.vectors.data import FitData


def trained(data: FitData) -> Tensor:
    """(width,) minimises the cross-entropy of the positive texts, or with `prefer` = 1 the DPO loss of the pairs."""
    settings = TuneSettings(
        steps=data.option("steps", 100, int),
        batch=data.batch_size,
        lr=float(data.option("lr", 0.1, (int, float))),
        seed=data.option("seed", 0, int),
        preserve=0.0,
    )
    if data.option("prefer", 0, int):
        loss = preference(data.lm, data.positive, data.negative, 0.1)
    else:
        loss = texts(data.lm, data.positive)
    for _ in data.tokens("negative"):  # their lengths are the unit of strengths
        pass
    found = vector(Problem(data.lm, loss, None, settings, sites=[data.site], progress=data.progress))
    data.found.update(loss=[found.history.target[0], found.history.target[-1]])
    assert isinstance(found.change, ActivationEdit), "a vector changes activations"
    (own,) = found.change.tensors.values()
    return own["v"].flatten().float()
