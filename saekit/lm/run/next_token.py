"""Next-token predictions at chosen tokens, a few at a time, because the logits of a whole batch take most of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from saekit.lm.run.forward import RunnableModel
from saekit.names.site import Site

_NUMBERS = 1 << 24
"""Logits that are computed at once for each of two runs; with more runs, fewer for each."""


def last_residuals(lm: RunnableModel, tokens_BT: Tensor, chosen: tuple[Tensor, ...], **settings: Any) -> Tensor:
    """The residual vectors before the final norm at chosen tokens: (N, d_model).

    Args:
        chosen: rows (N,) and columns (N,) of the tokens.
        settings: for `lm.run`, such as a mask and edits.
    """
    end = Site("resid_post", lm.n_layers - 1)
    resid_BTD = lm.run(tokens_BT, read=[end], logits=None, **settings)[end]
    return resid_BTD[tuple(index.to(resid_BTD.device) for index in chosen)]


def logits_of(lm: RunnableModel, *resids_ND: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield a slice of rows and their logits (n, V) in float32 for each of `resids_ND`, until all rows have been covered."""
    step = max(1, _NUMBERS // (lm.vocab_size * max(1, len(resids_ND) // 2)))
    for start in range(0, len(resids_ND[0]), step):
        rows = slice(start, start + step)
        yield rows, [lm.unembed(resid_ND[rows]).float() for resid_ND in resids_ND]
