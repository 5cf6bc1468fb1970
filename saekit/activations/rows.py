"""Rows of activations: one per token, chosen from a batch and checked."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saekit.activations.corpus.batches import TokenBatch
from saekit.errors import NonFiniteActivations
from saekit.names.site import Site


class RowSource(NamedTuple):
    """Where rows come from. N rows."""

    tokens_N: Tensor
    position_N: Tensor
    document_N: Tensor

    @classmethod
    def of(cls, batch: TokenBatch, keep_BT: Tensor) -> RowSource:
        """Of the chosen tokens of `batch`."""
        return cls(batch.tokens_BT[keep_BT], batch.position_BT[keep_BT], batch.document_BT[keep_BT])


def choose_rows(acts: Tensor, keep_BT: Tensor) -> Tensor:
    """The rows (N, width) of the chosen tokens out of (B, T, ...), without waiting for a GPU; a view where all are chosen."""
    acts_ND = acts.flatten(0, 1).flatten(1)
    if bool(keep_BT.all()):
        return acts_ND
    return acts_ND[keep_BT.flatten().nonzero()[:, 0].to(acts.device, non_blocking=True)]


def check_finite(site: Site, acts_ND: Tensor, bounds: Tensor, source: RowSource) -> None:
    """Raise unless every number is finite and was not lost to overflow.

    Args:
        acts_ND: rows in the dtype they are stored in.
        bounds: (2,) least and greatest of them as the model computed them; NaN where there is one.

    Raises:
        NonFiniteActivations: names the first row that is not.
    """
    limit = torch.finfo(acts_ND.dtype).max
    low, high = bounds.tolist()
    if -limit <= low and high <= limit:  # false for NaN, too
        return
    bad = (~torch.isfinite(acts_ND)).any(1).nonzero()
    if not len(bad):  # beyond the limit, yet rounded to it
        return
    n = int(bad[0])
    where = (
        f"{site} at document {int(source.document_N[n])}, position {int(source.position_N[n])} (token {int(source.tokens_N[n])})"
    )
    if math.isfinite(low) and math.isfinite(high):
        name = str(acts_ND.dtype).removeprefix("torch.")
        raise NonFiniteActivations(
            f"{where} is beyond {limit:,.0f}, the most that {name} holds.", "Store it as bfloat16 or float32."
        )
    value = "NaN" if acts_ND[n].isnan().any() else "infinite"
    raise NonFiniteActivations(
        f"{where} is {value}: the model computes it so.", "Try another compute dtype, or check its weights."
    )
