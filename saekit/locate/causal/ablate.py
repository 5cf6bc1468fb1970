"""Ablation: the exact effect of each object alone, with the rest of the model free to respond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from saekit.locate.causal.effects import AnyMetric, Grid
from saekit.locate.causal.places import WherePositions, places_of, recorded
from saekit.locate.causal.sources import Prompts, Replacement
from saekit.locate.scored import prepared, ranked
from saekit.objects import Space, default_spaces
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@torch.no_grad()
def ablation(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric | str | None = None,
    positions: WherePositions = None,
    replacement: Replacement | str = "zero",
    progress: bool = True,
) -> Ranking:
    """Rank objects by how much the metric drops on the clean prompts when each alone is ablated.

    score = metric(intact) - metric(ablated), for each prompt: positive where the object supports the behaviour. No approximation
    is made. Only features that fire in some prompt are ranked; the effect of any other is exactly 0 under zero ablation.

    Args:
        lm: the model.
        data: the task; its corrupted prompts are read by "counterfactual" alone.
        spaces: the objects; None: the features and errors of the attached SAEs, else heads and neurons.
        metric: as for :func:`saekit.locate.scored.prepared`.
        positions: None: each object at all tokens together, BOS too. "each", or integers: one score for each position. "last" or
            the name of a span: at those tokens.
        replacement: "zero", "mean", "resample", "counterfactual", or a :class:`Replacement` with its options.
        progress: show a bar.

    Raises:
        ConfigError: the task, the metric, positions or replacement do not fit.
        InterventionError: an object cannot be ablated like this.
    """
    task, found = prepared(lm, data, metric)
    how = Replacement(replacement) if isinstance(replacement, str) else replacement
    chosen = default_spaces(lm) if spaces is None else list(spaces)
    clean = Prompts.clean(lm, task)
    grid = Grid(clean, how.source(clean, task, chosen), found, places_of(task, positions))
    scores_NB = -grid.effects(chosen, progress=progress)
    facts = {"replacement": how.to, "positions": recorded(positions)}
    return ranked(grid.refs, scores_NB, method="ablation", lm=lm, data=data, metric=found, spaces=chosen, **facts)
