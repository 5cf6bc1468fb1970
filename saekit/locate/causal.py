"""What each object does, established by taking it away: one run of the model for every object, no approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saekit.objects import Ref
from saekit.progress import track
from saekit.steer.amplitude import ablate
from saekit.steer.measures import measure

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions


def heads(lm: LanguageModel) -> list[Ref]:
    """Every attention head, in the order of computation."""
    sites = [site for site in lm.sites() if site.kind == "heads"]
    return [lm.space(site).ref(unit) for site in sites for unit in range(lm.n_heads)]


@torch.no_grad()
def exhaustive_ablation(
    lm: LanguageModel,
    objects: Iterable[Ref | str],
    tokens_BT: Tensor | Sequence[Sequence[int]],
    metric: Callable[[Tensor], Tensor | float],
    *,
    attention_mask: Tensor | None = None,
    to: Literal["zero", "mean"] = "zero",
    positions: Positions | None = None,
    progress: bool = True,
) -> dict[Ref, float]:
    """How the metric changes when each object alone is ablated: negative where the object helped.

    Layers before an object's are not run again.

    Args:
        objects: heads, neurons, features, ...
        tokens_BT: token ids.
        metric: of the logits (B, T, V).
        attention_mask: (B, T), 1 at real tokens.
        to: 0, or the object's mean over the ordinary tokens of `tokens_BT`.
        positions: where it is ablated; None is every real token, BOS too.

    Returns:
        metric(ablated) - metric(intact) by ref, in the order given.

    Raises:
        UnknownRef: the model has no such object.
        InterventionError: an object cannot be ablated like this.
    """
    refs = list(dict.fromkeys(map(Ref.parse, objects)))
    recording = lm.record(tokens_BT, attention_mask)
    stats = measure(lm, refs, [], _rows(recording.tokens_BT, recording.mask_BT)).stats if to == "mean" else None
    # All are checked before the first run.
    ablations = {ref: ablate(ref, to).resolve(lm, stats=stats) for ref in refs}
    intact = float(metric(_logits(lm.run(start_at=(recording, 0, None)).logits)))
    effects: dict[Ref, float] = {}
    with track("ablating", total=len(refs), unit="objects", enabled=progress) as bar:
        for done, (ref, ablation) in enumerate(ablations.items(), 1):
            if ref.layer is None:
                run = lm.run(tokens_BT, attention_mask=attention_mask, edits=[ablation], positions=positions)
            else:
                run = lm.run(start_at=(recording, ref.layer, None), edits=[ablation], positions=positions)
            effects[ref] = float(metric(_logits(run.logits))) - intact
            bar.update(done, note=f"{ref} {effects[ref]:+.3g}")
    return effects


def _rows(tokens_BT: Tensor, mask_BT: Tensor | None) -> list[list[int]]:
    """The real tokens of each row."""
    if mask_BT is None:
        return tokens_BT.tolist()
    return [row[mask].tolist() for row, mask in zip(tokens_BT, mask_BT)]


def _logits(logits: Tensor | None) -> Tensor:
    assert logits is not None, "a run that reads nothing gives logits"
    return logits
