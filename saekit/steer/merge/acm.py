"""Activation-guided consensus merging (Yao et al. 2025, arXiv 2505.14009): small changes where a layer says nothing new.

The coefficient of model i in layer l is 1 - sigmoid(t * MI), with MI the mutual information in nats between the outputs of the
layer in the base model and in model i on the same tokens. Here MI is the mean over the coordinates of the residual stream of
-log(1 - rho^2) / 2, the mutual information of two Gaussian variables with correlation rho. Tensors in no layer take the mean
coefficient of the layers. Coefficients lie between 0 and 1/2: `scale` = 2 makes unrelated layers count in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.lm.run.batches import text_batches
from saekit.steer.merge.job import Job, Piece, Step, Texts, by_layer

_CLOSEST = 1 - 1e-12
"""Largest rho^2: that of equal activations would give infinite information."""


def acm(job: Job) -> Callable[[Piece], Step]:
    """Sum the task vectors with coefficients by layer. Options: t (1), scale (1).

    Raises:
        ConfigError: the texts have fewer than two ordinary tokens.
    """
    t = job.option("t", 1.0, low=0, high=1e6)
    base = outputs(LanguageModel.load(job.base.name), job.texts[0])
    per_model = []
    for model in job.models:
        theirs = outputs(LanguageModel.load(model.name), job.texts[0])
        per_model.append([1 / (1 + math.exp(min(t * information(a, b), 700.0))) for a, b in zip(base, theirs, strict=True)])
    found: dict[int | None, list[float]] = {layer: list(row) for layer, row in enumerate(zip(*per_model, strict=True))}
    found[None] = [sum(row) / len(row) for row in per_model]
    job.found["coefficients"] = [{"layer": layer, "shares": row} for layer, row in found.items()]
    return by_layer(job, found)


@torch.no_grad()
def outputs(lm: LanguageModel, texts: Texts, batch_size: int = 16) -> list[Tensor]:
    """For each layer its output (N, D) at the ordinary tokens, float32.

    Raises:
        ConfigError: there are fewer than two ordinary tokens.
    """
    sites = [lm.site(f"resid_post.{layer}") for layer in range(lm.n_layers)]
    parts: list[list[Tensor]] = [[] for _ in sites]
    for tokens_BT, mask_BT in text_batches(lm, texts, batch_size):
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
        kept_BT = lm.ordinary(tokens_BT, mask_BT)
        for part, site in zip(parts, sites, strict=True):
            part.append(acts[site][kept_BT].float().cpu())
    if sum(map(len, parts[0])) < 2:
        raise ConfigError("The texts have fewer than two ordinary tokens.", "Give longer texts.")
    return [torch.cat(part) for part in parts]


def information(one_ND: Tensor, other_ND: Tensor) -> float:
    """Mean over coordinates of the mutual information of Gaussian variables with the correlation of the columns, in nats."""
    one, other = (each.double() - each.double().mean(0) for each in (one_ND, other_ND))
    variance_D = one.square().sum(0) * other.square().sum(0)
    squared_D = torch.where(variance_D > 0, (one * other).sum(0).square() / variance_D, torch.zeros_like(variance_D))
    return float(-0.5 * torch.log1p(-squared_D.clamp(max=_CLOSEST)).mean())
