"""Patterns changed query by query, as other activations are changed token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saekit.lm import At


def by_query(pattern: Tensor, at: At, change: Callable[[Tensor, At], Tensor]) -> Tensor:
    """A pattern (B, heads, Q, K) changed query by query.

    Args:
        pattern: in the columns of the batch, pads included.
        at: what an edit at a pattern is given.
        change: takes rows (B Q, heads, K) whose column p is the key at position p, and where the queries are.
    """
    B, _, Q, K = pattern.shape
    rows = pattern.transpose(1, 2).flatten(0, 1)
    pads = at.window.left_pads_B.to(pattern.device).repeat_interleave(Q)
    padded = bool(pads.any())
    column = torch.arange(K, device=pattern.device)
    if padded:
        shift = ((column + pads[:, None]) % K)[:, None].expand_as(rows)
        rows = rows.gather(2, shift)
    new = change(rows, at.by_query())
    if padded:
        back = ((column - pads[:, None]) % K)[:, None].expand_as(rows)
        new = new.gather(2, back)
    return new.unflatten(0, (B, Q)).transpose(1, 2)
