"""Ablation of given objects on given tokens, for metrics of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saekit.lm.run.edits import TokenWindow
from saekit.locate.causal.effects import AnyMetric
from saekit.locate.causal.places import Place
from saekit.locate.causal.sets import Joint
from saekit.locate.causal.sources import Mean, Prompts, Zero
from saekit.locate.scored import ranked
from saekit.names.positions import TokenPositions
from saekit.names.ref import Ref
from saekit.objects import Space, space_of
from saekit.progress import track
from saekit.steer.amplitude import ablate
from saekit.steer.measures import measure
from saekit.tasks import Metric, Ranking, values_of

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
    metric: AnyMetric,
    *,
    attention_mask: Tensor | None = None,
    to: Literal["zero", "mean"] = "zero",
    positions: Positions | None = None,
    progress: bool = True,
) -> Ranking:
    """The drop of a metric when each object alone is ablated: positive where the object supports the behaviour.

    A :class:`saekit.tasks.Metric` is computed by the planner, many ablations at once. Any other callable sees the logits of all
    prompts together, one object after the other.

    Args:
        objects: heads, neurons, features, ...
        tokens_BT: token ids.
        metric: a metric, or a function of the logits (B, T, V) that returns a number, or one for each prompt, (B,).
        attention_mask: (B, T), 1 at real tokens.
        to: "zero", or "mean": the object's mean over the ordinary tokens of `tokens_BT`.
        positions: tokens at which objects are ablated; None is every real token, BOS too.

    Returns:
        metric(intact) - metric(ablated) for each object, in the order given. Where the metric gives a number for each of several
        prompts, the mean over the prompts with its 95 % bootstrap interval.

    Raises:
        UnknownRef: the model has no such object.
        InterventionError: an object cannot be ablated like this.
        ConfigError: the metric returns something else than a number or one for each prompt.
    """
    refs = list(dict.fromkeys(map(Ref.parse, objects)))
    tokens_BT = torch.as_tensor(tokens_BT)
    prompts = Prompts(lm, tokens_BT, attention_mask)
    spaces = {ref: space_of(lm, ref) for ref in refs}
    ablations = [ablate(ref, to, positions=positions) for ref in refs]  # checked before the first run
    if isinstance(metric, Metric):
        scores_NB = -_planned(prompts, spaces, metric, _place(prompts, positions), to, progress)
    else:
        rows = prompts.rows
        stats = measure(lm, refs, [], rows).stats if to == "mean" else None
        edits = [ablation.bind(lm, stats=stats) for ablation in ablations]
        scores_NB = _one_by_one(prompts, refs, edits, metric, progress)
    facts: dict[str, Any] = {
        "to": to,
        "prompts": len(tokens_BT),
        "positions": None if positions is None else str(TokenPositions.parse(positions)),
    }
    unique = {space.key: space for space in spaces.values()}.values()
    return ranked(refs, scores_NB, method="exhaustive_ablation", lm=lm, metric=metric, spaces=unique, **facts)


def _place(prompts: Prompts, positions: Positions | None) -> Place:
    """The positions of each prompt, counted without pads."""
    if positions is None:
        return Place(None, (None,) * len(prompts.rows))
    window = TokenWindow.of(prompts.tokens_BT, prompts.mask_BT, prompts.lm.special_tensor)
    chosen_BT = window.chosen(TokenPositions.parse(positions)).cpu()
    places = [row[chosen].tolist() for row, chosen in zip(window.position_BT.cpu(), chosen_BT)]
    return Place(None, tuple(map(tuple, places)))


def _planned(prompts: Prompts, spaces: dict[Ref, Space], metric: Metric, place: Place, to: str, progress: bool) -> Tensor:
    unique = list({space.key: space for space in spaces.values()}.values())
    source = Zero() if to == "zero" else Mean(prompts.lm, unique, prompts.rows)
    joint = Joint(prompts, source, {ref: (space, place) for ref, space in spaces.items()})
    return joint.effects([(ref,) for ref in spaces], metric, progress=progress)


def _one_by_one(prompts: Prompts, refs: Sequence[Ref], edits: Sequence[object], metric: AnyMetric, progress: bool) -> Tensor:
    """(N, B or 1): metric(intact) - metric(ablated). Layers before that of the object are not run again."""
    lm = prompts.lm
    recording = lm.record(prompts.tokens_BT, prompts.mask_BT)
    logits = lm.run(start_at=(recording, 0, None)).logits
    assert logits is not None, "a run that reads nothing gives logits"
    intact = values_of(metric, logits).double().cpu()
    scores: list[Tensor] = []
    with track("ablating", total=len(refs), unit="objects", enabled=progress) as bar:
        for ref, edit in zip(refs, edits):
            if ref.layer is None:
                run = lm.run(prompts.tokens_BT, attention_mask=prompts.mask_BT, edits=[edit])
            else:
                run = lm.run(start_at=(recording, ref.layer, None), edits=[edit])
            assert run.logits is not None
            scores.append(intact - values_of(metric, run.logits).double().cpu())
            bar.update(len(scores), note=f"{ref} {float(scores[-1].mean()):+.3g}")
    return torch.stack(scores) if scores else torch.zeros(0, len(intact))
