"""The amounts of changes, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.steer.change import Change
from saekit.steer.operations import Operation

if TYPE_CHECKING:
    from saekit.lm import At

# A linear congruential step on integers of 63 bits; draws must not depend on the batch or the cache.
_MULTIPLIER, _STEP, _BITS = 6364136223846793005, 1442695040888963407, 33


@dataclass
class Amounts:
    """The amounts of several units: (rows, units, *unit_shape), where `by` says what the rows are.

    "prompt": one row for all, or one for each prompt. "position": one for each position. "draw": values to draw from.
    """

    values: Tensor
    by: Literal["prompt", "position", "draw"] = "prompt"
    seed: int = 0

    @classmethod
    def stack(cls, changes: Sequence[Change], operation: Operation) -> Amounts:
        """The amounts of changes of one operation.

        Raises:
            InterventionError: they have values for different numbers of rows, or different seeds.
        """
        amounts = [change.amounts for change in changes if change.amounts is not None]
        rows = max(len(amount) for amount in amounts)
        by: Literal["prompt", "position", "draw"]
        by = "position" if operation.by_position else "draw" if operation.drawn else "prompt"
        if any(len(amount) not in ({1, rows} if by == "prompt" else {rows}) for amount in amounts):
            counts = sorted({len(amount) for amount in amounts})
            raise InterventionError(f"Changes to one space have values for {counts} rows.", "Give each as many values.")
        seeds = {change.strength.values[0] for change in changes} if by == "draw" else {0.0}
        if len(seeds) > 1:
            raise InterventionError(
                f"Units of one space are drawn with the seeds {sorted(seeds)}.", "Give one seed: they are drawn together."
            )
        stacked = torch.stack([amount.expand(rows, *amount.shape[1:]) for amount in amounts], 1)
        return cls(stacked, by, int(seeds.pop()))

    def at(self, at: At, like: Tensor) -> Tensor:
        """(1 or N, units, *unit_shape) for these tokens, in the dtype of `like`.

        Raises:
            InterventionError: there are no values for a prompt or position.
        """
        values = self.values.to(like.device, like.dtype)
        if self.by == "prompt" and len(values) == 1:
            return values
        if self.by == "draw":
            return values[_drawn(at.batch_N, at.position_N, self.seed).to(like.device) % len(values)]
        index = (at.position_N if self.by == "position" else at.batch_N).to(like.device)
        if int(index.max()) >= len(values):
            what = "positions" if self.by == "position" else "prompts"
            raise InterventionError(
                f"An intervention has values for {len(values)} {what}, and is applied to number {int(index.max())}.",
                "Choose its positions." if self.by == "position" else "Give one strength, or one for each prompt.",
            )
        return values[index]


def _drawn(batch_N: Tensor, position_N: Tensor, seed: int) -> Tensor:
    """(N,) a number from 0 to 2^30 for each token: a hash of its prompt, its position and the seed."""
    state = torch.full_like(position_N, seed % (1 << _BITS))
    for part in (batch_N, position_N, 0):
        state = (state ^ part) * _MULTIPLIER + _STEP  # wraps around at 64 bits
        state = state ^ ((state >> 29) & 0x3FFFFFFFF)
    return (state >> _BITS) & 0x3FFFFFFF
