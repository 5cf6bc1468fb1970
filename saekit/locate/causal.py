"""Causal effects of single objects: ablate each alone and run the model, without approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.positions import TokenPositions
from saekit.names.ref import Ref
from saekit.progress import track
from saekit.steer.amplitude import ablate
from saekit.steer.measures import measure
from saekit.tasks import Metric, Ranking

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions


def heads(lm: LanguageModel) -> list[Ref]:
    """Every attention head, in the order of computation."""
    sites = [site for site in lm.sites() if site.kind == "heads"]
    return [lm.space(site).ref(unit) for site in sites for unit in range(lm.token_shape(site)[0])]


@torch.no_grad()
def exhaustive_ablation(
    lm: LanguageModel,
    objects: Iterable[Ref | str],
    tokens_BT: Tensor | Sequence[Sequence[int]],
    metric: Metric | Callable[[Tensor], Tensor | float],
    *,
    attention_mask: Tensor | None = None,
    to: Literal["zero", "mean"] = "zero",
    positions: Positions | None = None,
    progress: bool = True,
) -> Ranking:
    """The change of a metric when each object alone is ablated: negative where the object helped.

    Layers before that of the object are not run again.

    Args:
        objects: heads, neurons, features, ...
        tokens_BT: token ids.
        metric: a metric, or a function of the logits (B, T, V) that returns a number, or one for each prompt, (B,).
        attention_mask: (B, T), 1 at real tokens.
        to: "zero", or "mean": the object's mean over the ordinary tokens of `tokens_BT`.
        positions: tokens at which objects are ablated; None is every real token, BOS too.

    Returns:
        metric(ablated) - metric(intact) for each object, in the order given. Where the metric gives a number for each of several
        prompts, the mean over the prompts with its 95 % interval (1.96 standard errors).

    Raises:
        UnknownRef: the model has no such object.
        InterventionError: an object cannot be ablated like this.
        ConfigError: the metric returns something else than a number or one for each prompt.
    """
    refs = list(dict.fromkeys(map(Ref.parse, objects)))
    recording = lm.record(tokens_BT, attention_mask)
    stats = measure(lm, refs, [], _rows(recording.tokens_BT, recording.mask_BT)).stats if to == "mean" else None
    # All are bound, and thereby checked, before the first run.
    ablations = {ref: ablate(ref, to, positions=positions).bind(lm, stats=stats) for ref in refs}
    intact = _values(metric, lm.run(start_at=(recording, 0, None)).logits)
    scores: list[float] = []
    intervals: list[tuple[float, float]] = []
    with track("ablating", total=len(refs), unit="objects", enabled=progress) as bar:
        for ref, ablation in ablations.items():
            if ref.layer is None:
                run = lm.run(tokens_BT, attention_mask=attention_mask, edits=[ablation])
            else:
                run = lm.run(start_at=(recording, ref.layer, None), edits=[ablation])
            change = _values(metric, run.logits) - intact
            scores.append(float(change.mean()))
            if len(change) > 1:
                error = 1.96 * float(change.std()) / len(change) ** 0.5
                intervals.append((scores[-1] - error, scores[-1] + error))
            bar.update(len(scores), note=f"{ref} {scores[-1]:+.3g}")
    obtained = {
        "method": "exhaustive_ablation",
        "model": lm.name,
        "to": to,
        "metric": metric.kind if isinstance(metric, Metric) else getattr(metric, "__name__", type(metric).__name__),
        "prompts": len(recording.tokens_BT),
        "positions": None if positions is None else str(TokenPositions.parse(positions)),
    }
    return Ranking(tuple(refs), tuple(scores), tuple(intervals), obtained)


def _rows(tokens_BT: Tensor, mask_BT: Tensor | None) -> list[list[int]]:
    """The real tokens of each row."""
    if mask_BT is None:
        return tokens_BT.tolist()
    return [row[mask].tolist() for row, mask in zip(tokens_BT, mask_BT)]


def _values(metric: Metric | Callable[[Tensor], Tensor | float], logits: Tensor | None) -> Tensor:
    """(B,) or (1,) float64 numbers of a run."""
    assert logits is not None, "a run that reads nothing gives logits"
    found = torch.as_tensor(metric.per_prompt(logits) if isinstance(metric, Metric) else metric(logits))
    if found.ndim > 1 or (found.ndim == 1 and len(found) != len(logits)):
        raise ConfigError(
            f"The metric returned shape {tuple(found.shape)} for {len(logits)} prompts.",
            "Return a number, or one for each prompt.",
        )
    return found.double().reshape(-1).cpu()
