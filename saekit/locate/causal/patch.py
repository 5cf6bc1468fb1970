"""Activation patching between the clean and the corrupted prompts, in both directions.

Denoising runs the corrupted prompt and inserts an object's clean value: does the object suffice to restore the behaviour?
Noising runs the clean prompt and inserts the corrupted value: is the object needed for it (Heimersheim and Nanda 2024)?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.causal.effects import AnyMetric, Grid
from saekit.locate.causal.places import WherePositions, places_of, recorded
from saekit.locate.causal.sources import Other, Prompts
from saekit.locate.scored import prepared, ranked
from saekit.objects import Ref, Space, default_spaces
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Direction = Literal["denoise", "noise", "both"]
DIRECTIONS = ("denoise", "noise", "both")


@dataclass(frozen=True)
class Patched:
    """The result of patching in both directions.

    Attributes:
        denoise: metric(corrupted run with the clean value) - metric(corrupted run).
        noise: metric(clean run) - metric(clean run with the corrupted value). It ranks the same objects in the same order.
        gap: metric(clean run) - metric(corrupted run), the mean over the prompts. Patching everything has this effect.
    """

    denoise: Ranking
    noise: Ranking
    gap: float

    def normalised(self, direction: str) -> dict[Ref, float]:
        """The effects of a direction divided by the gap. For denoising this is R = (M_p - M_r) / (M_c - M_r), the share of the
        behaviour that the object restores; for noising 1 - R, the share that it removes.

        Raises:
            ConfigError: there is no such direction, or the clean and the corrupted prompts have the same mean metric.
        """
        if direction not in DIRECTIONS[:2]:
            raise ConfigError(f"There is no direction {direction!r:.40}.", "Choose denoise or noise.")
        if self.gap == 0:
            raise ConfigError(
                "The clean and the corrupted prompts have the same metric, so that no share of it can be restored.",
                "Use raw effects, or other prompts.",
            )
        return {ref: score / self.gap for ref, score in getattr(self, direction).items()}

    def frame(self) -> Any:
        """A pandas DataFrame: ref, both effects, and both divided by the gap where there is one."""
        import pandas as pd

        columns: dict[str, Any] = {"ref": list(map(str, self.denoise.refs))}
        columns |= {name: getattr(self, name).scores for name in DIRECTIONS[:2]}
        if self.gap:
            columns |= {f"{name}_share": list(self.normalised(name).values()) for name in DIRECTIONS[:2]}
        return pd.DataFrame(columns)


@torch.no_grad()
def patch_both(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric | str | None = None,
    positions: WherePositions = None,
    progress: bool = True,
) -> Patched:
    """Patch each object alone in both directions; arguments and errors are those of :func:`patching`.

    Only features that fire in some clean or corrupted prompt are patched.
    """
    task, found = prepared(lm, data, metric)
    chosen = default_spaces(lm) if spaces is None else list(spaces)
    clean, corrupted = Prompts.clean(lm, task), Prompts.corrupted(lm, task)
    places, own = places_of(task, positions), [range(len(task))]
    noised, denoised = Grid(clean, Other(corrupted, own), found, places), Grid(corrupted, Other(clean, own), found, places)
    noise_NB = -noised.effects(chosen, progress=progress, what="noising")
    denoise_NB = denoised.effects(chosen, progress=progress, what="denoising")
    clean_B, corrupted_B = (each.planner.metric(found).double().cpu() for each in (clean, corrupted))
    facts = {
        "positions": recorded(positions),
        "clean": float(clean_B.mean()),
        "corrupted": float(corrupted_B.mean()),
    }

    def ranking(grid: Grid, scores_NB: Tensor, direction: str) -> Ranking:
        about: dict[str, Any] = {"data": data, "metric": found, "spaces": chosen, "direction": direction, **facts}
        return ranked(grid.refs, scores_NB, method="patching", lm=lm, **about)

    return Patched(
        ranking(denoised, denoise_NB, "denoise"), ranking(noised, noise_NB, "noise"), float((clean_B - corrupted_B).mean())
    )


def patching(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric | str | None = None,
    positions: WherePositions = None,
    direction: Direction = "both",
    progress: bool = True,
) -> Ranking:
    """Rank objects by the effect of patching each alone between the clean and the corrupted prompts.

    Args:
        lm: the model.
        data: the task.
        spaces: the objects; None: the features and errors of the attached SAEs, else heads and neurons.
        metric: as for :func:`saekit.locate.scored.prepared`.
        positions: as for :func:`saekit.locate.causal.ablation`.
        direction: "denoise" or "noise", whose effects :class:`Patched` defines, or "both": their mean.
        progress: show a bar.

    Returns:
        The scores of the direction; positive where the object supports the behaviour. `obtained` holds the effects of both
        directions, and their shares of the gap between the clean and the corrupted prompts: {"denoise": {ref: effect},
        "denoise_share": {ref: share}, "noise": ..., "noise_share": ...}. There are no shares where there is no gap.

    Raises:
        ConfigError: the task, the metric, positions or direction do not fit.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"There is no direction {direction!r:.40}.", f"Choose one of {', '.join(DIRECTIONS)}.")
    both = patch_both(lm, data, spaces=spaces, metric=metric, positions=positions, progress=progress)
    facts = {**both.denoise.obtained, "direction": direction}
    for name in DIRECTIONS[:2]:
        facts[name] = {str(ref): score for ref, score in getattr(both, name).items()}
        if both.gap:
            facts[f"{name}_share"] = {str(ref): share for ref, share in both.normalised(name).items()}
    return _ranking(both, direction, facts)


def _ranking(both: Patched, direction: str, facts: dict[str, Any]) -> Ranking:
    from dataclasses import replace

    from saekit.locate.scored import bootstrap

    if direction != "both":
        return replace(getattr(both, direction), obtained=facts)
    assert both.denoise.per_example is not None
    assert both.noise.per_example is not None
    values_NB = (both.denoise.per_example + both.noise.per_example) / 2
    low, high = bootstrap(values_NB)
    intervals = tuple(zip(low.tolist(), high.tolist())) if both.denoise.intervals else ()
    return Ranking(both.denoise.refs, tuple(values_NB.double().mean(1).tolist()), intervals, facts, values_NB)
