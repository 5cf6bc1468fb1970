"""Detection of divergence from the errors of the batches, at no cost for a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saekit.errors import Diverged

_PATIENCE = 8  # batches in a row; fewer may be odd ones
_WORTHLESS = 2.0  # FVU: predicting the mean has 1
_FACTOR = 10.0  # times the lowest level of the run so far
_MEMORY = 100  # batches of the running level


class DivergenceMonitor:
    """Watches the squared error of every batch.

    A run has diverged if the error of a batch is not finite, or if 8 consecutive batches each have an FVU above 2 and above ten
    times the lowest running mean of the FVU so far.

    Args:
        variance: variance of the data, in the units of the errors.
        state: what :meth:`state` gave, for a run that is resumed.
    """

    def __init__(self, variance: float, state: Mapping[str, Any] | None = None) -> None:
        self._variance = variance
        self._unread: list[tuple[Tensor | float, int, int]] = []  # squared error, tokens, tokens before the batch
        self._seen, self._level, self._lowest = 0, 0.0, math.inf
        self._bad: list[str] = []  # the last batches, if they look like the beginning of a divergence
        if state is not None:
            self._seen, self._level, self._lowest = state["seen"], state["level"], state["lowest"]

    def note(self, squares: Tensor | float, n_tokens: int, before: int) -> None:
        """Record the error of a batch without looking at it.

        Args:
            squares: squared error, summed over the batch.
            n_tokens: tokens of the batch.
            before: tokens of the run before the batch.
        """
        self._unread.append((squares, n_tokens, before))

    @property
    def healthy(self) -> bool:
        """Whether the last batch that was looked at had an error in the normal range."""
        return not self._bad

    def look(self) -> None:
        """Look at the batches recorded since the last call. On a GPU this waits for the device.

        Raises:
            Diverged: the run has diverged; the message names the first batch.
        """
        unread, self._unread = self._unread, []
        squares = [each for each, _, _ in unread]
        if squares and isinstance(squares[0], Tensor):
            squares = torch.stack(squares).tolist()  # type: ignore[arg-type]
        for each, (_, n_tokens, before) in zip(squares, unread):
            self._look_at(
                float(each) / (n_tokens * self._variance), f"batch {self._seen} (tokens {before} to {before + n_tokens})"
            )

    def _look_at(self, fvu: float, which: str) -> None:
        if not math.isfinite(fvu):
            raise Diverged(f"The error of {which} is not finite: the activations hold NaN or the run diverged.")
        self._seen += 1
        if fvu <= max(_WORTHLESS, _FACTOR * self._lowest):
            self._bad = []
            self._level += (fvu - self._level) / min(self._seen, _MEMORY)
            self._lowest = min(self._lowest, self._level)
            return
        self._bad.append(which)
        if len(self._bad) == _PATIENCE:
            later = f"{_PATIENCE - 1} batches later FVU is {fvu:.3g}, and its level was {self._lowest:.3g}"
            raise Diverged(f"The run diverged at {self._bad[0]}: {later}.")

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, as plain data for JSON. Only valid while the run is healthy."""
        return {"seen": self._seen, "level": self._level, "lowest": self._lowest}
