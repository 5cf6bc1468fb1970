"""Groups of positions: edges are scored, kept and ablated for each group alone (PEAP, Haklay et al. 2025, arXiv 2502.04577)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.tasks import Task

REST = "rest"
"""The positions that belong to no span that was named."""


@dataclass(frozen=True, eq=False)
class Spans:
    """S groups of positions, which together are all positions of a task's B prompts of T tokens.

    Attributes:
        names: of each group; None is the only group, of all positions.
        group_BT: int64, the number of the group of each position.
    """

    names: tuple[str | None, ...]
    group_BT: Tensor

    @classmethod
    def of(cls, task: Task, positions: Any = None) -> Spans:
        """The groups that `positions` names.

        Args:
            positions: None: all positions are one group. "each": every position is a group. "spans": every span of the task is a
                group. The name of a span, "last" (the last token), or places counted from 0: each is a group. What is left over
                is the group "rest".

        Raises:
            ConfigError: the task has no such span, spans overlap, or a prompt has no such place.
        """
        B, T = task.clean_BT.shape
        if positions is None:
            return cls((None,), torch.zeros(B, T, dtype=torch.long))
        if isinstance(positions, str) and positions == "each":
            return cls(tuple(map(str, range(T))), torch.arange(T).expand(B, T))
        if isinstance(positions, str):
            names: list[str] = list(task.spans) if positions == "spans" else [positions]
        else:
            names = [str(position) for position in positions]
        if not names:
            raise ConfigError(f"Task {task.name!r} names no spans.", "Give positions='each', or places such as [0, 4].")
        group_BT = torch.full((B, T), len(names))
        for number, name in enumerate(names):
            for b, places in enumerate(task.positions(name)):
                if (group_BT[b, list(places)] != len(names)).any():
                    raise ConfigError(f"Positions {name!r} of prompt {b} overlap others.", "Name spans that lie apart.")
                group_BT[b, list(places)] = number
        return cls((*names, REST), group_BT)

    def one_hot(self, rows: slice) -> Tensor:
        """(b, T, S) float: 1 at the group of each position of some prompts."""
        return torch.nn.functional.one_hot(self.group_BT[rows], len(self.names)).float()

    def __len__(self) -> int:
        return len(self.names)
