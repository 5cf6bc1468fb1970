"""What a gradient method is asked: prompts in batches, a metric of each prompt, spaces, and the positions that are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.scored import prepared
from saekit.names.site import Site
from saekit.objects import Space, Tokens, default_spaces
from saekit.tasks import Metric, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

MetricLike = Metric | Callable[[Any], Any] | str | None
"""A metric, a callable of logits (B, T, V) that returns (B,), the name of a kind, or None for the logit difference."""
Where = str | Sequence[int] | None
"""Positions: "each", "last", the name of a span of the task, some positions from 0, or None for the sum over all tokens."""
TOKENS = 1 << 13
"""Tokens of the rows that run together."""


@dataclass(frozen=True)
class Batch:
    """Prompts that run together. B prompts, T columns; the pads may be on either side.

    Attributes:
        tokens_BT: the clean prompts.
        corrupted_BT: the corrupted prompts, which share the mask.
        mask_BT: True at real tokens; None where there are no pads.
        metric: of these prompts. A callable takes the logits (B, T, V) of all of them and returns (B,).
        columns: the numbers of the prompts in the task.
    """

    tokens_BT: Tensor
    corrupted_BT: Tensor
    mask_BT: Tensor | None
    metric: Metric | Callable[[Any], Any]
    columns: range

    def __len__(self) -> int:
        return len(self.tokens_BT)

    @property
    def real_BT(self) -> Tensor:
        """True at real tokens."""
        return torch.ones_like(self.tokens_BT, dtype=torch.bool) if self.mask_BT is None else self.mask_BT

    @property
    def last_B(self) -> Tensor:
        """(B,) the column of the last real token of each prompt."""
        return self.real_BT.shape[1] - 1 - self.real_BT.flip(1).long().argmax(1)

    def repeated(self, times: int) -> Batch:
        """Every prompt `times` times: row r is prompt r % B. The metric stays that of the B prompts."""
        mask = None if self.mask_BT is None else self.mask_BT.repeat(times, 1)
        return Batch(self.tokens_BT.repeat(times, 1), self.corrupted_BT.repeat(times, 1), mask, self.metric, self.columns)


@dataclass(frozen=True)
class Groups:
    """Which positions are summed: those of one group give one score.

    Attributes:
        group_BT: (B, T) int64, the group of each token; -1 for tokens that take no part.
        labels: the position that the refs of each group have; None for objects at all positions.
    """

    group_BT: Tensor
    labels: tuple[int | str | None, ...]

    def repeated(self, times: int) -> Groups:
        """The groups of a batch whose prompts are repeated."""
        return Groups(self.group_BT.repeat(times, 1), self.labels)


@dataclass(frozen=True)
class Problem:
    """The question that a method answers.

    Attributes:
        lm: the model.
        task: the prompts; for metrics of answers of several tokens, followed by the answers.
        metric: of all prompts.
        spaces: whose objects are scored.
        where: the positions asked for.
    """

    lm: LanguageModel
    task: Task
    metric: Metric | Callable[[Any], Any]
    spaces: tuple[Space, ...]
    where: Where

    @classmethod
    def of(
        cls, lm: LanguageModel, data: Task, spaces: Sequence[Space] | None, metric: MetricLike = None, where: Where = None
    ) -> Problem:
        """The problem that the arguments of a method state.

        Raises:
            ConfigError: `data` is no task, it has no prompts, its metric cannot be made, or there are no such positions.
        """
        if not isinstance(data, Task) or not len(data):
            raise ConfigError(
                f"Gradients need a task with prompts, not {type(data).__name__}.",
                "Give a Task: saekit.tasks.Task, a file of one, or a generator.",
            )
        task, found = prepared(lm, data, metric)
        chosen = default_spaces(lm) if spaces is None else list(spaces)
        if not chosen:
            raise ConfigError(
                "No space is given, so there are no objects to score.", "Give spaces, or None for the default ones."
            )
        problem = cls(lm, task, found, tuple(chosen), where)
        problem.labels(chosen[0])  # an unknown position is found before anything runs
        return problem

    def sites(self) -> list[Site]:
        """The sites where the spaces are read and written."""
        return sorted({site for space in self.spaces for site in (space.site, space.site_out)})

    def batches(self) -> Iterator[Batch]:
        """The prompts, as many together as memory allows. A callable metric knows all prompts, so that these run together."""
        task, device = self.task, self.lm.device
        B, T = task.clean_BT.shape
        step = max(1, TOKENS // T) if isinstance(self.metric, Metric) else B
        for start in range(0, B, step):
            columns = range(start, min(start + step, B))
            part = slice(columns.start, columns.stop)
            mask_BT = task.mask_BT[part].bool().to(device)
            longest = int(mask_BT.sum(1).max())
            # A callable may read the last column of all prompts.
            width = longest if isinstance(self.metric, Metric) else T
            yield Batch(
                task.clean_BT[part, :width].to(device),
                task.corrupted_BT[part, :width].to(device),
                None if bool(mask_BT[:, :width].all()) else mask_BT[:, :width],
                self.metric.of_prompts(columns) if isinstance(self.metric, Metric) else self.metric,
                columns,
            )

    def labels(self, space: Space) -> tuple[int | str | None, ...]:
        """The positions that the refs of a space have: for input embeddings each position, unless others are asked for."""
        where = self.where
        if where is None and isinstance(space, Tokens):
            where = "each"
        if where is None:
            return (None,)
        if isinstance(where, str) and where != "each":
            self.task.positions(where)
            return (where,)
        listed = range(max(map(len, self.task.clean))) if isinstance(where, str) else where
        if not isinstance(where, str):
            for place in where:
                self.task.positions(place)
        return tuple(dict.fromkeys(listed))

    def groups(self, space: Space, batch: Batch) -> Groups:
        """The groups of the tokens of a batch for a space."""
        labels = self.labels(space)
        real_BT = batch.real_BT
        if labels == (None,):
            return Groups(real_BT.long() - 1, labels)
        place_BT = torch.where(real_BT, real_BT.long().cumsum(1) - 1, -1)  # counted without pads
        if all(isinstance(label, int) for label in labels):
            numbers = [int(label) for label in labels if label is not None]
            group_P = torch.full((max(*numbers, place_BT.shape[1], 1) + 1,), -1, device=real_BT.device)
            group_P[numbers] = torch.arange(len(labels), device=real_BT.device)
            return Groups(torch.where(real_BT, group_P[place_BT], -1), labels)
        rows = self.task.positions(str(labels[0]))
        chosen_BT = torch.zeros_like(real_BT)
        for row, column in enumerate(batch.columns):
            chosen_BT[row] = torch.isin(place_BT[row], torch.tensor(rows[column], device=real_BT.device))
        return Groups((chosen_BT & real_BT).long() - 1, labels)
