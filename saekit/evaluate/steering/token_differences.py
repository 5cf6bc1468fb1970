"""How much likelier or less likely steering makes each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.evaluate.steering.side_effects import token_effects

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions


@dataclass(frozen=True)
class TokenDifference:
    """One token of a continuation.

    Attributes:
        token: as text to show.
        base: its log-probability in the unsteered model, in nats.
        steered: the same with the intervention.
        kl: KL(base || steered) of the distributions that it was chosen from, in nats.
    """

    token: str
    base: float
    steered: float
    kl: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the difference of the log-probabilities."""
        return {**vars(self), "difference": self.steered - self.base}


def token_differences(
    lm: LanguageModel,
    intervention: Any,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    positions: Positions | None = None,
) -> list[TokenDifference]:
    """The log-probability of each token of a continuation without and with an intervention.

    Args:
        lm: the model.
        intervention: anything that `lm.run(edits=...)` takes.
        prompt: its token ids, at least one.
        continuation: token ids; empty gives an empty list.
        positions: as for `lm.generate`.
    """
    if not continuation:
        return []
    found = token_effects(lm, intervention, [list(prompt)], continuations=[list(continuation)], positions=positions)
    shown = lm.text.token_strings(continuation)
    values = zip(shown, found.loss.tolist(), found.steered_loss.tolist(), found.kl.tolist(), strict=True)
    return [TokenDifference(token, -base, -steered, kl) for token, base, steered, kl in values]
