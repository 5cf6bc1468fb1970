"""Next-token predictions at chosen tokens, few at a time: all logits of a batch are far larger than all else together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from saekit.lm.run.forward import RunnableModel
from saekit.names.site import Site

_NUMBERS = 1 << 24
"""Logits of one run that are at hand at once."""


def last_residuals(lm: RunnableModel, tokens_BT: Tensor, chosen: tuple[Tensor, ...], **settings: Any) -> Tensor:
    """What the unembedding reads at the `chosen` tokens (rows and columns, (N,) each): (N, d_model).

    Args:
        settings: for `lm.run`: a mask, edits and the like.
    """
    end = Site("resid_post", lm.n_layers - 1)
    resid_BTD = lm.run(tokens_BT, read=[end], logits=None, **settings)[end]
    return resid_BTD[tuple(index.to(resid_BTD.device) for index in chosen)]


def logits_of(lm: RunnableModel, *resids_ND: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Logits (n, V) in float32 of the same few rows of each of `resids_ND`, and which rows these are, until all were."""
    step = max(1, _NUMBERS // lm.vocab_size)
    for start in range(0, len(resids_ND[0]), step):
        rows = slice(start, start + step)
        yield rows, [lm.unembed(resid_ND[rows]).float() for resid_ND in resids_ND]
