"""A metric of some of a task's prompts, computed from no more logits than it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.scored import prepared
from saekit.tasks import Metric, Task, metric_name, values_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

AnyMetric = Metric | Callable[[Tensor], Tensor | float] | str | None


class Measure:
    """A metric of a task's B prompts, higher where the model shows more of the behaviour.

    Args:
        lm: the model.
        task: the prompts.
        metric: a metric of all prompts of the task, its name, or a function of logits (B, T, V) that returns (B,). None is the
            logit difference.

    Attributes:
        task: the prompts to run: those of the task, with their answers where the metric judges answers of several tokens.
        metric: the metric.
        divisible: it can be computed for some of the prompts alone.

    Raises:
        ConfigError: there is no such metric, or the task has no answers that it needs.
    """

    def __init__(self, lm: LanguageModel, task: Task, metric: AnyMetric = None) -> None:
        self.task, self.metric = prepared(lm, task, metric)
        self.divisible = isinstance(self.metric, Metric)
        self.name = metric_name(self.metric)
        self._reach = self.metric.reach if isinstance(self.metric, Metric) else None

    def narrowed(self, x_BTD: Tensor, rows: slice) -> Tensor:
        """(b, k, ...) at the last tokens that count, of an activation (b, T, ...); all of it where all tokens count."""
        if self._reach is None:
            return x_BTD
        place_bk = self.task.last_B[rows, None] + torch.arange(1 - self._reach, 1)
        return x_BTD[torch.arange(len(x_BTD))[:, None], place_bk.clamp_min(0).to(x_BTD.device)]

    def __call__(self, narrow: Tensor, rows: slice, *, gradient: bool = False) -> Tensor:
        """(b,): the metric of some prompts, from the :meth:`narrowed` logits.

        Raises:
            ConfigError: a function returned something else than one number for each prompt, or has no gradient where one is
                needed.
        """
        metric = self.metric
        if isinstance(metric, Metric):
            metric = metric.of_prompts(range(rows.start, rows.stop))
            metric = metric if self._reach is None else metric.at_the_end(self._reach)
        found = values_of(metric, narrow, gradient=gradient)
        if len(found) != len(narrow):
            raise ConfigError(
                f"The metric {self.name} returned one number for {len(narrow)} prompts.", "Return one number for each prompt."
            )
        return found
