"""Phases of in-context learning over checkpoints (Olsson et al. 2022, "In-context learning and induction heads")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy


def in_context_score(logits_BTV: Tensor, tokens_BT: Tensor, early: int, late: int) -> float:
    """Loss at position `late` minus loss at position `early`, in nats: negative for a model that learns from its context."""
    losses = [cross_entropy(logits_BTV[:, at - 1].double(), tokens_BT[:, at]).item() for at in (early, late)]
    return losses[1] - losses[0]


def prefix_score(pattern_BHTT: Tensor, tokens_BT: Tensor) -> Tensor:
    """(H,) mean attention to the tokens that followed earlier occurrences of the query's token (prefix matching).

    Queries whose token has not occurred before are left out; 0 where none has.
    """
    same_BTT = (tokens_BT[:, :, None] == tokens_BT[:, None, :]).tril(-1)  # query, earlier occurrence
    after_BTT = same_BTT.new_zeros(same_BTT.shape)
    after_BTT[:, :, 1:] = same_BTT[:, :, :-1]
    counted_BT = after_BTT.any(2)
    mass_BHT = (pattern_BHTT.double() * after_BTT[:, None]).sum(3)
    counted = counted_BT[:, None].expand_as(mass_BHT)
    return (mass_BHT * counted).sum((0, 2)) / counted_BT.sum().clamp_min(1)


@dataclass(frozen=True)
class Phase:
    """The change of a measure over checkpoints.

    Attributes:
        begin, middle, end: first checkpoints at which a tenth, half and nine tenths of the whole change are done.
    """

    begin: int
    middle: int
    end: int


def phase(steps: Sequence[int], values: Sequence[float]) -> Phase | None:
    """When a measure changes, from its first to its last value; None where both are the same."""
    whole = values[-1] - values[0]
    if not whole:
        return None
    done = [(value - values[0]) / whole for value in values]
    begin, middle, end = (next(step for step, share in zip(steps, done) if share >= least) for least in (0.1, 0.5, 0.9))
    return Phase(begin, middle, end)
