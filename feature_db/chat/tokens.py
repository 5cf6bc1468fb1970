"""How many tokens are about to be sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from feature_db.chat.model import Messages, estimated_tokens

Item = TypeVar("Item")
_SAMPLE = 100  # items whose questions are made for an estimate


@dataclass(frozen=True)
class Estimate:
    """About how much will be sent and received, if the first answers can be read."""

    requests: int
    tokens_in: int
    tokens_out: int


def estimate(items: Sequence[Item], questions: Callable[[Item], Sequence[Messages]], tokens_out: int) -> Estimate:
    """An estimate from the questions about some of the items, evenly spaced.

    Args:
        items: what there are questions about.
        questions: the questions about one item.
        tokens_out: of one answer.
    """
    some = items[:: max(1, -(-len(items) // _SAMPLE))]
    asked = [[estimated_tokens(messages) for messages in questions(item)] for item in some]
    scale = len(items) / max(len(some), 1)
    requests = round(scale * sum(map(len, asked)))
    return Estimate(requests, round(scale * sum(map(sum, asked))), requests * tokens_out)
