"""The trained parameters, in the scaled units of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_DRAWN = 4096  # rows at a time


class Parameters(dict[str, Tensor]):
    """Named tensors, also as attributes: `p.W_enc_FD` is `p["W_enc_FD"]`.

    Every dictionary has W_enc_FD, b_enc_F, W_dec_FE and b_dec_E, with D numbers read and E predicted; an architecture may add
    others. Names end in their shape. Tensors that have latents have them as the first axis, so that a latent is one piece of
    memory and a slice of all of them is a smaller dictionary.
    """

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"There is no parameter {name!r}; there are {', '.join(self)}.") from error

    def __setattr__(self, name: str, value: Tensor) -> None:
        self[name] = value

    def map(self, change: Callable[[Tensor], Tensor]) -> Parameters:
        """New parameters: `change` applied to every tensor."""
        return Parameters({name: change(tensor) for name, tensor in self.items()})


def random_rows(n_rows: int, width: int, seed: int, own: slice) -> Tensor:
    """Rows `own` of a random (n_rows, width) matrix with rows of norm 1. A row does not depend on which others are asked for."""
    generator = torch.Generator().manual_seed(seed)
    rows, start = torch.empty(own.stop - own.start, width), 0
    while start < n_rows:
        # torch draws other numbers where there are fewer than 16 of them.
        stop = n_rows if n_rows - start < _DRAWN + 16 else start + _DRAWN
        drawn, first = torch.randn(stop - start, width, generator=generator), max(start, own.start)
        if first < min(stop, own.stop):
            rows[first - own.start : stop - own.start] = drawn[first - start : own.stop - start]
        start = stop
    return rows.div_(rows.norm(dim=1, keepdim=True))


def has_latents(name: str) -> bool:
    """Whether the first axis of a tensor of that name has a row for each latent."""
    return name.rpartition("_")[2].startswith("F")
