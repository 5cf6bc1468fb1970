"""Gradients of a loss with respect to weights, for methods that choose what to tune."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from saekit.steer.optimise.loop import grouped_batches
from saekit.steer.optimise.masked import restore
from saekit.steer.optimise.masks import WeightMask, trainable
from saekit.steer.optimise.objectives import Loss

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def mean_gradients(lm: LanguageModel, loss: Loss, mask: WeightMask, *, batches: int, batch: int, seed: int) -> dict[str, Tensor]:
    """The gradient of the loss, the mean over some batches, of the parameters in a mask, by name.

    Memory: a gradient of each of these parameters.
    """
    drawn = grouped_batches(loss.groups, batch, seed)
    with gradients_on(lm, mask) as weights:
        for _ in range(batches):
            with torch.inference_mode(False), torch.enable_grad():
                loss(next(drawn)[1]).backward()
        return {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad / batches for name, weight in weights.items()
        }


@contextmanager
def gradients_on(lm: LanguageModel, mask: WeightMask) -> Iterator[dict[str, nn.Parameter]]:
    """Within the block the parameters in a mask collect gradients; afterwards they have the gradients from before."""
    weights = trainable(lm, mask)
    with lm.lock, ExitStack() as stack:
        for weight in weights.values():
            stack.callback(restore, weight, weight.requires_grad, weight.grad)
            weight.grad = None
            weight.requires_grad_(True)
        yield weights


def largest(scores: Tensor, share: float) -> Tensor:
    """A mask of the largest `share` of a tensor's entries, at least one."""
    k = max(1, int(share * scores.numel()))
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(k).indices] = True
    return mask.view(scores.shape)
