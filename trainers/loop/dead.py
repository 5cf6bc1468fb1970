"""Dead latents: those that have not fired for a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REFRESH = 8  # steps between updates of the list of dead latents; on a GPU each update waits for the device


@dataclass
class DeadCounter:
    """Counts the tokens since each latent last fired.

    Attributes:
        limit: tokens after which a latent is dead.
        since_F: (F,) int64 tokens since the latent last fired.
        dead: int64 indices of the latents that were dead at the last update of the list.
    """

    limit: int
    since_F: Tensor
    dead: Tensor

    @classmethod
    def start(cls, n_latents: int, limit: int, device: str | torch.device) -> DeadCounter:
        zeros = torch.zeros(n_latents, dtype=torch.int64, device=device)
        return cls(limit, zeros, zeros[:0])

    def count(self, firings_F: Tensor, n_tokens: int, step: int) -> None:
        """Count one batch.

        Args:
            firings_F: (F,) how often each latent fired on the batch.
            n_tokens: tokens of the batch.
            step: number of the batch, from 1.
        """
        self.since_F += n_tokens
        self.since_F.masked_fill_(firings_F > 0, 0)
        if step % REFRESH == 0:
            self.dead = (self.since_F > self.limit).nonzero()[:, 0]

    @property
    def dead_F(self) -> Tensor:
        """(F,) bool: `dead` as a mask."""
        return torch.zeros_like(self.since_F, dtype=torch.bool).index_fill_(0, self.dead, True)

    @dead_F.setter
    def dead_F(self, is_dead_F: Tensor) -> None:
        self.dead = is_dead_F.nonzero()[:, 0]
