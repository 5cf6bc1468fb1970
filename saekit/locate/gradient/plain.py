"""Gradients of single runs: their norm, and their product with the activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from saekit.locate.gradient.backward import backward
from saekit.locate.gradient.problem import Batch, MetricLike, Problem, Where
from saekit.locate.gradient.products import Part, products, ranking, squares
from saekit.objects import Space
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def gradient_norm(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: Where = None,
    progress: bool = True,
) -> Ranking:
    """The length of the metric's gradient along each object, on the clean prompts: how sensitive the metric is to it.

    The length is taken over the positions that are summed and the numbers of a vector. It has no sign, so that it does not tell
    objects that support the behaviour from objects that oppose it. One backward pass serves all sites. Features are scored at the
    tokens where they are active.

    Args:
        lm: the model.
        data: a task.
        spaces: whose objects are scored; None: features and errors of the attached SAEs, else heads and neurons.
        metric: what the model is judged by; None: the logit difference.
        positions: see :mod:`saekit.locate.gradient`.
        progress: show a progress bar.

    Raises:
        ConfigError: the task, the metric or the positions do not fit, or the metric has no gradient.
        NonFiniteActivations: the metric of a prompt is not finite.
    """
    problem = Problem.of(lm, data, spaces, metric, positions)

    def parts(batch: Batch) -> Iterator[Part]:
        run = backward(lm, batch, problem.sites())
        for space in problem.spaces:
            found = squares(space, run.acts, run.grads, problem.groups(space, batch))
            yield Part(found.keys_N, found.scores_NB.sqrt())

    return ranking(problem, parts, method="gradient_norm", progress=progress, facts={})


def gradient_x_activation(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: Where = None,
    progress: bool = True,
) -> Ranking:
    """Each object's activation times the gradient of the metric along it, on the clean prompts.

    To first order this is metric(intact) - metric(ablated to zero): positive where the object supports the behaviour (input x
    gradient, Shrikumar et al., arXiv 1605.01713). It fails where the metric is flat around the run, as behind an attention head
    that is sure of its choice; :func:`saekit.locate.gradient.integrated_gradients` does not.

    Arguments and errors are those of :func:`gradient_norm`.
    """
    problem = Problem.of(lm, data, spaces, metric, positions)

    def parts(batch: Batch) -> Iterator[Part]:
        run = backward(lm, batch, problem.sites())
        for space in problem.spaces:
            yield products(space, run.acts, None, run.grads, problem.groups(space, batch))

    return ranking(problem, parts, method="gradient_x_activation", progress=progress, facts={})
