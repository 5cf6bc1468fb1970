"""The exact effect of changing objects, one at a time or several together: every method of this package runs through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from saekit.lm.run.planner import Replace, Variant
from saekit.locate.causal.places import Columns, Place
from saekit.locate.causal.sources import Coefficients, Prompts, Source
from saekit.objects import Features, Ref, Space
from saekit.progress import track
from saekit.tasks import Metric

AT_ONCE = 1 << 14
"""Variants that are given to the planner together."""
AnyMetric = Metric | Callable[[Tensor], Tensor | float]


@dataclass
class Grid:
    """Effects of every object of some spaces at some places on every prompt.

    Attributes:
        prompts: what is run and changed.
        source: what coefficients are replaced with.
        metric: of the runs.
        places: where.
        refs: the objects that were found, by space, unit and place; filled by :meth:`effects`.
    """

    prompts: Prompts
    source: Source
    metric: AnyMetric
    places: Sequence[Place]
    refs: list[Ref] = field(default_factory=list)
    _number: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def effects(self, spaces: Sequence[Space], *, progress: bool, what: str = "ablating") -> Tensor:
        """(N, B) float64: metric(changed) - metric(unchanged) of each object in `refs` on each prompt.

        Objects that a change leaves as they are have an effect of exactly 0. Of a dictionary, only features are listed that fire
        in some prompt, before or after the change.
        """
        base_B = self.prompts.planner.metric(self.metric).double().cpu()
        parts: list[tuple[list[int], list[int], Tensor]] = []
        with track(what, total=None, unit="runs", enabled=progress) as bar:
            done = 0
            for batch in _batches(self._changes(spaces)):
                values = self.prompts.planner.effects([variant for _, variant in batch], self.metric, progress=False)
                rows = [variant.row for _, variant in batch]
                parts.append(([number for number, _ in batch], rows, values.double().cpu() - base_B[rows]))
                done += len(batch)
                bar.update(done)
            bar.end(done)
        total_NB = torch.zeros(len(self._number), len(base_B), dtype=torch.float64)
        for numbers, rows, change in parts:
            total_NB.index_put_((torch.tensor(numbers), torch.tensor(rows)), change, accumulate=True)
        order = sorted(self._number)
        self.refs = [spaces[s].ref_at(unit, self.places[p].name) for s, unit, p in order]
        return total_NB[[self._number[key] for key in order]] / self.source.draws

    def _changes(self, spaces: Sequence[Space]) -> Iterator[tuple[int, Variant]]:
        """(number of the object, what is run), for every object, prompt and draw whose coefficient may change."""
        for s, space in enumerate(spaces):
            for row in range(len(self.prompts.rows)):
                current = self.prompts.read(space, row)
                for draw in range(self.source.draws):
                    yield from self._of_prompt((s, space), row, current, self.source.new(space, row, draw))

    def _of_prompt(
        self, place: tuple[int, Space], row: int, current: Coefficients, new: Coefficients
    ) -> Iterator[tuple[int, Variant]]:
        s, space = place
        units = torch.cat([current.units, new.units]).unique()
        before, after = current.of(units), new.of(units).to(current.values)
        for p, where in enumerate(self.places):
            columns = where.columns[row]
            if columns == ():
                continue
            old, values = chosen(before, columns), chosen(after, columns)
            changed_n = (old != values).flatten(2).any(2).any(0) if old.ndim > 2 else (old != values).any(0)
            for i, unit in enumerate(units.tolist()):
                if isinstance(space, Features) and not changed_n[i]:
                    continue  # a feature that does not fire here is listed only if it does elsewhere
                number = self._number.setdefault((s, unit, p), len(self._number))
                if changed_n[i]:
                    yield number, Variant(row, (Replace(space, [unit], values[:, i : i + 1], columns),))


def chosen(values: Tensor, columns: Columns) -> Tensor:
    """The values at some positions: (P or 1, n, *unit_shape)."""
    return values if columns is None or len(values) == 1 else values[list(columns)]


def _batches(changes: Iterator[tuple[int, Variant]]) -> Iterator[list[tuple[int, Variant]]]:
    while batch := list(islice(changes, AT_ONCE)):
        yield batch
