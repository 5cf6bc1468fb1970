"""Which tokens count: the one rule for training data, statistics, measurements and steering."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Ids = TypeVar("Ids", Tensor, np.ndarray)


def ordinary(
    tokens: Ids,
    special: Collection[int] | Tensor,
    *,
    mask: Ids | None = None,
    position: Ids | None = None,
    chosen: Ids | None = None,
    keep_first: bool = False,
) -> Ids:
    """True at tokens that count: real, chosen ones that stand for text and are not the first of their context.

    The first token is an attention sink: attention gathers there, and its activations are tens of times larger than elsewhere,
    whether or not it is a BOS (Xiao et al. 2023, arXiv 2309.17453).

    Args:
        tokens: ids, (B, T), (T,) or (N,).
        special: ids of BOS, EOS, PAD and other tokens that stand for no text.
        mask: 1 at real tokens, in the shape of `tokens`; None if there are no pads.
        position: place of each token in its context, counted from 0 without pads, in the shape of `tokens`. None: a row is a
            context.
        chosen: True at the tokens that are to be trained on (:mod:`saekit.lm.chat`), in the shape of `tokens`; None: all.
        keep_first: count the first token of a context too, unless it is special.

    Returns:
        A bool tensor, or a bool array for an array, in the shape of `tokens`.
    """
    if isinstance(tokens, np.ndarray):
        named = {"mask": mask, "position": position, "chosen": chosen}
        others = {name: None if each is None else torch.as_tensor(each) for name, each in named.items()}
        return ordinary(torch.as_tensor(tokens), special, **others, keep_first=keep_first).numpy()
    special_n = special if isinstance(special, Tensor) else torch.tensor(sorted(special))
    counts = ~torch.isin(tokens, special_n.to(tokens.device, tokens.dtype))
    if mask is not None:
        counts &= mask.bool().to(tokens.device)
    if chosen is not None:
        counts &= chosen.bool().to(tokens.device)
    if keep_first:
        return counts
    if position is None:
        position = positions_from_mask(torch.ones_like(tokens) if mask is None else mask)
    return counts & (position != 0).to(tokens.device)


def positions_from_mask(real_BT: Tensor) -> Tensor:
    """(..., T) place of each token in its own row, pads not counted (and given 0 or the place before them)."""
    return (real_BT.long().cumsum(-1) - 1).clamp_min(0)
