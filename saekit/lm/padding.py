"""Rows of different lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.errors import ConfigError

Side = Literal["left", "right"]


class Padded(NamedTuple):
    """B rows, T tokens each."""

    tokens_BT: Tensor
    """int64, with the fill value at pads."""
    mask_BT: Tensor
    """int64, 1 at real tokens and 0 at pads."""


def pad(rows: Sequence[Sequence[int] | np.ndarray[Any, Any]], side: Side, fill: int = 0) -> Padded:
    """Rows of integers as one (B, T) tensor, where T is the length of the longest.

    Raises:
        ConfigError: `side` is neither "left" nor "right".
    """
    if side not in ("left", "right"):
        raise ConfigError(f"The side of the pads is {side!r}.", "Give 'left' or 'right'.")
    length_B1 = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    T = int(length_B1.max()) if len(rows) else 0
    place_T = torch.arange(T)
    mask_BT = place_T < length_B1 if side == "right" else place_T >= T - length_B1
    tokens_BT = torch.full((len(rows), T), fill)
    if T:
        tokens_BT[mask_BT] = torch.from_numpy(np.concatenate([np.asarray(row, np.int64) for row in rows]))
    return Padded(tokens_BT, mask_BT.long())
