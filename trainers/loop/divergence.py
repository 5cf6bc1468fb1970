"""Whether a run diverges: told from the errors of its batches, so that it costs a step nothing."""

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
    """Sees the squared error of every batch.

    A run has diverged if a batch's error is not finite, or if 8 in a row are more than twice the variance of the data, and more
    than ten times the lowest running level that the run has had.

    Args:
        variance: of the data, in the units of the errors.
        state: of :meth:`state`, where a run goes on.
    """

    def __init__(self, variance: float, state: Mapping[str, Any] | None = None) -> None:
        self._variance = variance
        self._unread: list[tuple[Tensor | float, int, int]] = []  # squared error, tokens, tokens before the batch
        self._seen, self._level, self._lowest = 0, 0.0, math.inf
        self._bad: list[str] = []  # the last batches, if they look like the beginning of a divergence
        if state is not None:
            self._seen, self._level, self._lowest = state["seen"], state["level"], state["lowest"]

    def note(self, squares: Tensor | float, n_tokens: int, before: int) -> None:
        """Take note of a batch of `n_tokens`, the first of which is number `before` of the run; nothing is computed."""
        self._unread.append((squares, n_tokens, before))

    @property
    def healthy(self) -> bool:
        """Whether the batches looked at give no reason for suspicion."""
        return not self._bad

    def look(self) -> None:
        """Look at the batches noted; on a GPU this waits for it.

        Raises:
            Diverged: says from which batch on.
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
        """What going on needs, fit for JSON; only to be asked for while it is calm."""
        return {"seen": self._seen, "level": self._level, "lowest": self._lowest}
