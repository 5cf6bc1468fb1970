"""A source of activations in memory that follows the protocol of the readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from saekit.errors import CheckpointError
from saekit.names.site import Site

SITE = Site("resid_post", 0)


class Memory:
    """Endless shuffled batches of rows of `x_ND`, or of the tensors of several sites; each epoch has its own order.

    With `pairs`, batches are (B, 2, D): each row, and the row before it.
    """

    def __init__(self, x_ND: Tensor | dict[Site, Tensor], batch_size: int, seed: int = 0, epochs: int | None = None) -> None:
        self.acts = {SITE: x_ND} if isinstance(x_ND, Tensor) else x_ND
        self.batch_size, self.seed, self.epochs = batch_size, seed, epochs
        self.pairs = False
        self._epoch = self._row = 0

    @property
    def n_tokens(self) -> int:
        return len(next(iter(self.acts.values())))

    @property
    def settings(self) -> dict[str, Any] | None:
        return {"pairs": True} if self.pairs else None

    def width(self, site: Site) -> int:
        return self.acts[site].shape[1]

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        while self.epochs is None or self._epoch < self.epochs:
            order = torch.randperm(self.n_tokens, generator=torch.Generator().manual_seed(1000 * self.seed + self._epoch))
            while self._row < self.n_tokens:
                rows = order[self._row : self._row + self.batch_size]
                self._row += len(rows)
                if self.pairs:
                    yield {site: torch.stack([x_ND[rows], x_ND[rows - 1]], 1) for site, x_ND in self.acts.items()}
                else:
                    yield {site: x_ND[rows] for site, x_ND in self.acts.items()}
            self._epoch, self._row = self._epoch + 1, 0
        self._epoch = 0

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "row": self._row, "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise CheckpointError("The data were read with another seed.")
        self._epoch, self._row = state["epoch"], state["row"]
