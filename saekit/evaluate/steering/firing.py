"""Whether the features of an intervention fire where it changes them: an ablated feature that never fires changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saekit.evaluate.steering.side_effects import batches_of
from saekit.lm.run.edits import TokenWindow
from saekit.names.positions import GENERATION, AnyPositions
from saekit.names.ref import Ref
from saekit.objects import space_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions
    from saekit.names.positions import Choice
    from saekit.steer.intervention import BoundIntervention


@dataclass(frozen=True)
class Firing:
    """At how many of the steered positions a feature fires, in the continuations of the unsteered model."""

    feature: Ref
    fired: int
    """Positions at which its activation is not 0."""
    steered: int
    """Positions at which the intervention changes it."""

    def __str__(self) -> str:
        if not self.steered:
            return f"{self.feature}: no position was steered"
        return f"{self.feature} fired on {self.fired:,} of {self.steered:,} steered positions"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"feature": str(self.feature), "fired": self.fired, "steered": self.steered}


@torch.no_grad()
def firings(
    lm: LanguageModel,
    intervention: BoundIntervention,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    positions: Positions | None = None,
    batch_size: int = 8,
) -> list[Firing]:
    """Count, for each feature of an intervention, the steered positions and those at which it fires without the intervention.

    Args:
        lm: the model.
        intervention: bound to it.
        prompts, continuations: token ids of the unsteered model's texts. The last token of a continuation is not counted:
            generation ends before the model reads it.
        positions: as given to `lm.generate`.
    """
    choices: dict[Ref, list[Choice | None]] = {}
    for change in intervention.intervention.changes:
        if isinstance(change.target, Ref) and change.target.kind == "feature":
            choices.setdefault(change.target, []).append(change.choice)
    if not choices:
        return []
    spaces = {ref: space_of(lm, ref) for ref in choices}
    counts = {ref: [0, 0] for ref in choices}
    for batch in batches_of(lm, prompts, continuations, batch_size):
        acts = lm.run(
            batch.tokens_BT, attention_mask=batch.mask_BT, read={space.site for space in spaces.values()}, logits=None
        ).acts
        default = GENERATION if positions is None else positions
        window = TokenWindow.of(batch.tokens_BT, batch.mask_BT, lm.special_tensor.cpu(), batch.prompt_B, default)
        for ref, space in spaces.items():
            steered_BT = window.chosen(AnyPositions(tuple(choices[ref]))) & batch.followed_BT
            x_ND = acts[space.site][steered_BT.to(acts[space.site].device)]
            counts[ref][0] += int(space.read(x_ND, [ref.unit]).count_nonzero()) if len(x_ND) else 0
            counts[ref][1] += len(x_ND)
    return [Firing(ref, fired, steered) for ref, (fired, steered) in counts.items()]
