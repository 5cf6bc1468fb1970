"""Sens-Merging (Liu et al. 2025, arXiv 2502.12420): a coefficient for each layer and model from two sensitivities.

- Layers: alpha_i^l = sum over the parameters of layer l of E_x |g * theta|, with g the gradient of the loss of model i on a text
  x of its own skill; scaled to length 1 over the layers of a model.
- Tasks: tau_i says how well model i stands in for the others. d_i is the mean squared distance of its logits from those of model
  j, on the texts of each other model j; tau_i = 1 - d_i / sum_k d_k.
- theta^l = theta_base^l + scale * sum_i sigma_i^l (theta_i^l - theta_base^l), with sigma^l the softmax over models i of
  alpha_i^l tau_i / T.

The coefficients of a layer sum to 1, so the result is a mean of task vectors: `scale` = number of models makes it comparable to
their sum. The normalisation of tau and the default of T are saekit's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, MergeError
from saekit.lm import LanguageModel
from saekit.lm.run.batches import text_rows
from saekit.steer.merge.job import Job, Piece, Step, by_layer, layer_of


def sens(job: Job) -> Callable[[Piece], Step]:
    """Sum the task vectors with coefficients by layer. Options: scale (1), temperature (0.1, T).

    Raises:
        ConfigError: a set of texts has no text of two tokens.
    """
    temperature = job.option("temperature", 0.1, low=1e-6, high=1e6)
    shares = coefficients(*measure(job), temperature)
    layers = job.layers
    job.found["coefficients"] = [{"layer": layer, "shares": row} for layer, row in zip(layers, shares.T.tolist(), strict=True)]
    return by_layer(job, dict(zip(layers, shares.T.tolist(), strict=True)))


def measure(job: Job) -> tuple[Tensor, Tensor]:
    """Sensitivities (M, L) of layers in the order of `job.layers`, and distances (M,) from the other models. Both float64.

    One model is in memory at a time; the logits of each model on its own texts are kept.
    """
    alpha, own = [], []
    for model, texts in zip(job.models, job.texts, strict=True):
        lm = LanguageModel.load(model.name)
        rows = [row for row in text_rows(lm, texts) if len(row) > 1]
        if not rows:
            raise ConfigError(f"The texts for {model.name} have no text of two tokens.", "Give longer texts.")
        found = sensitivities(lm.model, partial(_losses, lm, rows))
        alpha.append([found.get(layer, 0.0) for layer in job.layers])
        own.append([(row, _logits(lm, row)) for row in rows])
    distances = []
    for i, model in enumerate(job.models):
        others = [pair for j, pairs in enumerate(own) if j != i for pair in pairs]
        lm = LanguageModel.load(model.name)
        apart = [float((_logits(lm, row) - logits).square().sum(-1).mean()) for row, logits in others]
        distances.append(sum(apart) / max(len(apart), 1))
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)


def sensitivities(model: nn.Module, losses: Callable[[], Iterable[Tensor]]) -> dict[int | None, float]:
    """Sum over the parameters of each layer of the mean over losses of |g * theta|.

    Args:
        model: its parameters are left without gradients, and as they were.
        losses: makes one loss after the other; each is differentiated before the next is made.
    """
    parameters = dict(model.named_parameters())
    needed = {name: each.requires_grad for name, each in parameters.items()}
    sums: dict[int | None, float] = {}
    number = 0
    try:
        model.requires_grad_(True)
        with torch.enable_grad():
            for loss in losses():
                number += 1
                grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for (name, each), grad in zip(parameters.items(), grads, strict=True):
                    if grad is not None:
                        layer = layer_of(name)
                        sums[layer] = sums.get(layer, 0.0) + float((grad * each).detach().abs().double().sum())
    finally:
        for name, each in parameters.items():
            each.requires_grad_(needed[name])
    return {layer: value / max(number, 1) for layer, value in sums.items()}


def coefficients(alpha_ML: Tensor, distance_M: Tensor, temperature: float) -> Tensor:
    """The shares (M, L) of the models in each layer."""
    alpha_ML = alpha_ML / alpha_ML.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    apart = float(distance_M.sum())
    tau_M = 1 - distance_M / apart if apart > 0 and len(distance_M) > 1 else torch.ones_like(distance_M)
    shares_ML = (alpha_ML * tau_M[:, None] / temperature).softmax(0)
    if not shares_ML.isfinite().all():
        raise MergeError("The sensitivities of a model are not finite.", "Check its loss on its texts.")
    return shares_ML


def _losses(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    for row in rows:
        ids = torch.tensor([list(row)], device=lm.device)
        with lm.lock:
            yield lm.model(input_ids=ids, labels=ids, use_cache=False).loss


@torch.no_grad()
def _logits(lm: LanguageModel, row: Sequence[int]) -> Tensor:
    """(T, V) float32 on the CPU."""
    run = lm.run(torch.tensor([list(row)], device=lm.device), logits="all")
    assert run.logits is not None
    return run.logits[0].float().cpu()
