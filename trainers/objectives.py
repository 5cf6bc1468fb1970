"""What an architecture tells the loop, and the table of architectures that can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.parameters import Parameters
    from trainers.sparse import SparseGradient

# Architecture -> the class in its own file. A new one is a file and a line.
OBJECTIVES: Mapping[str, str] = {"topk": "trainers.topk:TopK"}


class Outcome(NamedTuple):
    """What one batch gave.

    Attributes:
        loss: what is minimised; a differentiable scalar from `loss`, a number from `gradient`.
        squares: sum over the batch of the squared reconstruction error.
        values_BK, indices_BK: the code.
    """

    loss: Tensor | float
    squares: Tensor | float
    values_BK: Tensor
    indices_BK: Tensor


class Objective(Protocol):
    """One architecture's loss. `dead` are the indices of dead latents.

    `loss` is differentiable and runs anywhere; `gradient` gives the same loss and its gradient by hand, on a CPU in float32, in
    the sparse form that :class:`trainers.sparse.SparseGradient` spends.
    """

    unit_rows: bool
    """Keep decoder rows at norm 1."""

    def loss(self, p: Parameters, x_BD: Tensor, dead: Tensor) -> Outcome: ...

    def gradient(self, p: Parameters, x_BD: Tensor, dead: Tensor) -> tuple[Outcome, SparseGradient]: ...


def objective(config: TrainConfig, variance: float) -> Objective:
    """The objective of a configuration; `variance` is that of the scaled data."""
    module, name = OBJECTIVES[config.arch].split(":")
    made: Objective = getattr(import_module(module), name)(config, variance)
    return made
