"""Which latents are dead: they have not fired for a number of tokens (not of steps)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REFRESH = 8  # steps between looks at the list of dead latents; on a GPU each look waits for the device


@dataclass
class DeadCounter:
    """Counts, for every latent, the tokens since it last fired.

    Attributes:
        limit: tokens after which a latent is dead.
        since_F: (F,) int64.
        dead: int64 indices of the latents that were dead at the last look.
    """

    limit: int
    since_F: Tensor
    dead: Tensor

    @classmethod
    def start(cls, n_latents: int, limit: int, device: str | torch.device) -> DeadCounter:
        zeros = torch.zeros(n_latents, dtype=torch.int64, device=device)
        return cls(limit, zeros, zeros[:0])

    def count(self, firings_F: Tensor, n_tokens: int, step: int) -> None:
        """Take note of how often each latent fired on one batch, the `step`-th."""
        self.since_F += n_tokens
        self.since_F.masked_fill_(firings_F > 0, 0)
        if step % REFRESH == 0:
            self.dead = (self.since_F > self.limit).nonzero()[:, 0]

    @property
    def dead_F(self) -> Tensor:
        """(F,) bool: which latents those are."""
        return torch.zeros_like(self.since_F, dtype=torch.bool).index_fill_(0, self.dead, True)

    @dead_F.setter
    def dead_F(self, is_dead_F: Tensor) -> None:
        self.dead = is_dead_F.nonzero()[:, 0]
