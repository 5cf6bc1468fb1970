"""Attribution patching: patching every object at once, to first order (Nanda 2023; Syed et al., arXiv 2310.10348)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from saekit.errors import ConfigError
from saekit.locate.gradient.backward import backward, read
from saekit.locate.gradient.problem import Batch, MetricLike, Problem, Where
from saekit.locate.gradient.products import Part, products, ranking
from saekit.objects import Space
from saekit.plugins import nearest
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Direction = Literal["noise", "denoise", "both"]
"""noise: corrupted values go into the clean run. denoise: clean values go into the corrupted run. both: the mean of the two."""


def attribution_patching(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: Where = None,
    direction: Direction = "noise",
    progress: bool = True,
) -> Ranking:
    """The effect of patching each object between the clean and the corrupted prompt, to first order. o: clean, r: corrupted.

    - noise: (o_c - o_r) . g(c), how much the metric of the clean prompt falls when the object takes its corrupted value;
    - denoise: (o_c - o_r) . g(r), how much the metric of the corrupted prompt rises when the object takes its clean value.

    Both are positive where the object supports the behaviour. Each costs two forward passes and one backward pass in all.
    Features that are active in neither run have no score.

    Args:
        lm: the model.
        data: a task.
        spaces: whose objects are scored; None: features and errors of the attached SAEs, else heads and neurons.
        metric: what the model is judged by; None: the logit difference.
        positions: see :mod:`saekit.locate.gradient`.
        direction: "noise", "denoise", or "both" for their mean.
        progress: show a progress bar.

    Raises:
        ConfigError: the task, the metric, the positions or the direction do not fit, or the metric has no gradient.
        NonFiniteActivations: the metric of a prompt is not finite.
    """
    check_direction(direction, ("noise", "denoise", "both"))
    problem = Problem.of(lm, data, spaces, metric, positions)

    def parts(batch: Batch) -> Iterator[Part]:
        sites = problem.sites()
        clean = backward(lm, batch, sites) if direction != "denoise" else None
        corrupted = backward(lm, batch, sites, corrupted=True) if direction != "noise" else None
        clean_acts = read(lm, batch, sites) if clean is None else clean.acts
        corrupted_acts = read(lm, batch, sites, corrupted=True) if corrupted is None else corrupted.acts
        for space in problem.spaces:
            groups = problem.groups(space, batch)
            runs = [run for run in (clean, corrupted) if run is not None]
            found = [products(space, clean_acts, corrupted_acts, run.grads, groups, base=run.acts) for run in runs]
            yield Part(found[0].keys_N, torch.stack([part.scores_NB for part in found]).mean(0))

    return ranking(problem, parts, method="attribution_patching", progress=progress, facts={"direction": direction})


def check_direction(direction: str, known: Sequence[str]) -> None:
    """Raise ConfigError where a direction is not one of those known."""
    if direction not in known:
        raise ConfigError(f"There is no direction {direction!r}.", nearest(direction, known))
