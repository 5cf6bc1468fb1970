"""Activation-informed merging (Nobari et al. 2025, arXiv 2502.02421): protect the weights that the base model uses most.

The importance of an input channel of a linear layer is its mean |activation| in the base model on general texts, divided by that
of the layer's largest channel. The merged change of a weight with importance A is multiplied by 1 - (1 - omega) A. Weights that
multiply no measured input (embeddings, norms) keep the whole change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, MergeError
from saekit.lm import LanguageModel
from saekit.lm.run.batches import text_batches
from saekit.steer.merge.arithmetic import arithmetic
from saekit.steer.merge.job import Job, Piece, Step, Texts


def aim(job: Job) -> Callable[[Piece], Step]:
    """Task arithmetic with relaxed changes. Options: omega (0.4; 1 changes nothing), scale (1).

    Raises:
        MergeError: the linear layers of the model are named otherwise than the tensors of its files.
    """
    kept = 1 - job.option("omega", 0.4, low=0, high=1)
    important = importances(LanguageModel.load(job.base.name), job.texts[0])
    known = important.keys() & set(job.names)
    if not known:
        raise MergeError(
            f"No tensor of {job.base.name} is named as a linear layer of the model is.", "Choose another method than aim."
        )
    job.found["tensors with importance"] = len(known)
    added = arithmetic(job)

    def merge(piece: Piece) -> Step:
        step = added(piece)
        if piece.name not in known:
            return step
        return Step(step.change * (1 - kept * important[piece.name].to(step.change.dtype)), step.used)

    return merge


@torch.no_grad()
def importances(lm: LanguageModel, texts: Texts, batch_size: int = 16) -> dict[str, Tensor]:
    """For each weight of a linear layer, the importance of its input channels, of a shape that multiplies the weight.

    Only ordinary tokens count.

    Raises:
        ConfigError: the texts have no ordinary token.
    """
    layers = {name: each for name, each in lm.model.named_modules() if _inputs(each)}
    sums = {name: torch.zeros(_inputs(each), dtype=torch.float64) for name, each in layers.items()}
    mask: list[Tensor] = []
    hooks = [each.register_forward_pre_hook(partial(_add, sums[name], mask)) for name, each in layers.items()]
    tokens = 0
    try:
        for tokens_BT, mask_BT in text_batches(lm, texts, batch_size):
            mask[:] = [lm.ordinary(tokens_BT, mask_BT)]
            tokens += int(mask[0].sum())
            lm.run(tokens_BT, attention_mask=mask_BT, logits="all")
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ConfigError("The texts have no ordinary token.", "Give longer texts.")
    return {
        f"{name}.weight": _shaped(sums[name] / top, each) for name, each in layers.items() if (top := float(sums[name].max())) > 0
    }


def _add(sums_D: Tensor, mask: list[Tensor], module: nn.Module, inputs: tuple[Any, ...]) -> None:
    acts = inputs[0]
    if acts.shape[:2] == mask[0].shape:  # experts of a mixture see chosen tokens only, in another shape
        sums_D += acts[mask[0].to(acts.device)].abs().double().sum(0).cpu()


def _inputs(module: nn.Module) -> int:
    """Number of input channels of a linear layer; 0 for other modules."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features
    return int(module.weight.shape[0]) if isinstance(module, Conv1D) else 0


def _shaped(importance_D: Tensor, module: nn.Module) -> Tensor:
    """(1, D) for weights (out, D), and (D, 1) for those of Conv1D, (D, out)."""
    return importance_D[None] if isinstance(module, nn.Linear) else importance_D[:, None]
