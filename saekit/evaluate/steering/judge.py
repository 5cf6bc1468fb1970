"""Tells texts with a concept from texts without it by their tokens alone: a judge that has not seen activations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.tasks import Contrast

_PRIOR = 1.0
"""Occurrences that are added to those of every token on both sides."""


@dataclass(frozen=True, eq=False)
class TokenJudge:
    """Naive Bayes over tokens, with equal priors of both sides.

    Attributes:
        lm: the model whose tokens count.
        weights: by token, log P(token | positive) - log P(token | negative); tokens that no text had weigh 0.
    """

    lm: LanguageModel
    weights: dict[int, float]

    @classmethod
    def of(cls, lm: LanguageModel, contrast: Contrast) -> TokenJudge:
        """From texts with and without a concept.

        Raises:
            ConfigError: a side has no ordinary token.
        """
        sides = [
            Counter(t for row in lm.text.ids(list(texts)) for t in row if t not in lm.special_ids)
            for texts in (contrast.positive, contrast.negative)
        ]
        if not all(sides):
            raise ConfigError(f"A side of the contrast {contrast.name!r} has no ordinary token.", "Give longer texts.")
        every = set(sides[0]) | set(sides[1])
        totals = [sum(side.values()) + _PRIOR * len(every) for side in sides]
        return cls(lm, {t: log((sides[0][t] + _PRIOR) / totals[0]) - log((sides[1][t] + _PRIOR) / totals[1]) for t in every})

    def evidence(self, text: str) -> float:
        """Mean weight of the tokens of a text, in nats; 0 for a text without a token."""
        (row,) = self.lm.text.ids([text])
        ids = [t for t in row if t not in self.lm.special_ids]
        return sum(self.weights.get(t, 0.0) for t in ids) / len(ids) if ids else 0.0

    def success(self, text: str) -> float:
        """1 where the tokens speak for the positive side, else 0."""
        return float(self.evidence(text) > 0)

    def telling(self, n: int = 20) -> list[int]:
        """The tokens that speak most for the positive side, by their share of its evidence there."""
        return sorted((t for t, weight in self.weights.items() if weight > 0), key=lambda t: -self.weights[t])[:n]
