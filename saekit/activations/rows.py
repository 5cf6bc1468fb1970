"""Rows of activations, one for each token: choosing them from a batch, and checking them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saekit.activations.corpus.batches import TokenBatch
from saekit.errors import NonFiniteActivations
from saekit.names.site import Site


class RowSource(NamedTuple):
    """Token, position and document of each of N rows, and whether the user chooses it to be trained on."""

    tokens_N: Tensor
    position_N: Tensor
    document_N: Tensor
    chosen_N: Tensor

    @classmethod
    def of(cls, batch: TokenBatch, keep_BT: Tensor) -> RowSource:
        """The source of the rows of the chosen tokens of `batch`."""
        return cls(batch.tokens_BT[keep_BT], batch.position_BT[keep_BT], batch.document_BT[keep_BT], batch.chosen_BT[keep_BT])


def choose_rows(acts: Tensor, keep_BT: Tensor) -> Tensor:
    """Rows (N, width) of the chosen tokens of activations (B, T, ...). Does not wait for a GPU; a view if all are chosen."""
    acts_ND = acts.flatten(0, 1).flatten(1)
    if bool(keep_BT.all()):
        return acts_ND
    return acts_ND[keep_BT.flatten().nonzero()[:, 0].to(acts.device, non_blocking=True)]


def check_finite(site: Site, acts_ND: Tensor, bounds: Tensor, source: RowSource) -> None:
    """Raise unless every number is finite, before and after the conversion to the stored dtype.

    Args:
        acts_ND: rows in the dtype they are stored in.
        bounds: (2,) least and greatest of them as the model computed them; NaN where there is one.

    Raises:
        NonFiniteActivations: names the first row that is not.
    """
    limit = torch.finfo(acts_ND.dtype).max
    low, high = bounds.tolist()
    if -limit <= low and high <= limit:  # false also for NaN
        return
    bad = (~torch.isfinite(acts_ND)).any(1).nonzero()
    if not len(bad):  # beyond the limit by so little that it was rounded to it
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
