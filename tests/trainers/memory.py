"""A source of activations in memory, with the protocol of the readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from saekit.errors import CheckpointError
from saekit.lm.sites import Site

SITE = Site("resid_post", 0)


class Memory:
    """Endless shuffled batches of rows of `x_ND`; each epoch has its own order."""

    def __init__(self, x_ND: Tensor, batch_size: int, seed: int = 0, epochs: int | None = None) -> None:
        self.x_ND, self.batch_size, self.seed, self.epochs = x_ND, batch_size, seed, epochs
        self._epoch = self._row = 0

    @property
    def n_tokens(self) -> int:
        return len(self.x_ND)

    def width(self, site: Site) -> int:
        assert site == SITE
        return self.x_ND.shape[1]

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        while self.epochs is None or self._epoch < self.epochs:
            order = torch.randperm(len(self.x_ND), generator=torch.Generator().manual_seed(1000 * self.seed + self._epoch))
            while self._row < len(self.x_ND):
                rows = order[self._row : self._row + self.batch_size]
                self._row += len(rows)
                yield {SITE: self.x_ND[rows]}
            self._epoch, self._row = self._epoch + 1, 0
        self._epoch = 0

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "row": self._row, "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise CheckpointError("The data were read with another seed.")
        self._epoch, self._row = state["epoch"], state["row"]
