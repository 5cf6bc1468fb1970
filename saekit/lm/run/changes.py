"""Changes of a batch of runs: what each row of the batch sets at each site, applied to all rows at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.edits import Edit
from saekit.lm.run.unchanged import Unchanged
from saekit.names.site import Site
from saekit.objects.spaces import Space


class Replace(NamedTuple):
    """Set coefficients of units of one space in one prompt. P positions, n units.

    Attributes:
        space: the space.
        units: the units, different ones.
        values: broadcasts to (P, n, *unit_shape).
        positions: columns of the row, counted without pads; None: all real tokens. For a pattern they are queries.
    """

    space: Space
    units: Sequence[int]
    values: Tensor
    positions: Sequence[int] | None = None


class Variant(NamedTuple):
    """One run: a prompt in which replacements hold together.

    Attributes:
        row: the prompt's number in the planner's batch.
        replaced: the replacements; none changes a unit at a position that another one changes.
    """

    row: int
    replaced: tuple[Replace, ...]


@dataclass(frozen=True)
class Step:
    """A replacement that is ready to be made: at P columns of a row, k units.

    Attributes:
        space: the space.
        columns: (P,).
        units: (k,).
        values: (P, k, *unit_shape).
        current: the coefficients in the unchanged run, where these still hold when the step is made; else None.
    """

    space: Space
    columns: Tensor
    units: Tensor
    values: Tensor
    current: Tensor | None


@dataclass(frozen=True)
class Prepared:
    """A variant without its replacements that change nothing.

    Attributes:
        number: its number among the variants given.
        row: its prompt.
        steps: in the order of computation; empty where nothing changes.
    """

    number: int
    row: int
    steps: tuple[Step, ...]

    @property
    def layer(self) -> int:
        """The first block that must run again; -1 where the embedding changes."""
        return min(
            -1 if site.layer is None else site.layer for step in self.steps for site in (step.space.site, step.space.site_out)
        )


def prepare(base: Unchanged, number: int, variant: Variant) -> Prepared:
    """Check a variant, and leave out what changes nothing: setting what is there already before anything else has changed.

    Raises:
        ConfigError: a position does not exist, or the values do not fit.
        UnknownRef: a unit does not exist.
    """
    steps: list[Step] = []
    written: list[Site] = []
    for each in sorted(variant.replaced, key=lambda each: (each.space.site_out, each.space.site, not each.space.relative)):
        columns = _columns(base, number, variant.row, each.positions)
        units = each.space.check(each.units, columns.device)
        # Reads of an SAE come before all writes at its site, those of a transcoder after them.
        transcodes = each.space.site_out != each.space.site
        fresh = not any(site < each.space.site or (transcodes and site == each.space.site) for site in written)
        current = base.coefficients(each.space, variant.row, columns, units) if fresh else None
        values = _values(base, number, each, (len(columns), len(units)))
        if each.space.site.kind == "pattern":  # whatever the values, no token attends to a pad
            values = values.masked_fill(torch.arange(values.shape[-1], device=values.device) >= base.lengths[variant.row], 0)
        if current is not None and all(site == each.space.site_out for site in written):
            dtype = base.act(each.space.site_out).dtype
            same = values == current if each.space.relative else values.to(dtype) == current.to(dtype)
            changed = ~same.flatten(1).all(1)
            if not bool(changed.all()):
                columns, values, current = columns[changed], values[changed], current[changed]
            if not len(columns):
                continue
        steps.append(Step(each.space, columns, units, values, current))
        written.append(each.space.site_out)
    return Prepared(number, variant.row, tuple(steps))


def _columns(base: Unchanged, number: int, row: int, positions: Sequence[int] | None) -> Tensor:
    length, device = base.lengths[row], base.tokens_BT.device
    if positions is None:
        return torch.arange(length, device=device)
    columns = torch.as_tensor(positions, dtype=torch.long, device=device).reshape(-1)
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < length:
        raise ConfigError(
            f"Variant {number} has positions {columns.tolist()} in row {row}, which has {length} tokens.",
            f"Give positions from 0 to {length - 1}, counted without pads.",
        )
    return columns


def _values(base: Unchanged, number: int, each: Replace, lead: tuple[int, int]) -> Tensor:
    last = [base.tokens_BT.shape[1] if size < 0 else size for size in each.space.unit_shape]
    like = base.act(each.space.site_out)
    values = torch.as_tensor(each.values, device=like.device).to(torch.promote_types(like.dtype, torch.float32))
    try:
        return values.expand(*lead, *last)
    except RuntimeError as error:
        raise ConfigError(
            f"Variant {number} sets values of shape {tuple(values.shape)} at {lead[0]} positions of {lead[1]} units at "
            f"{each.space.site}.",
            f"Give values that broadcast to {(*lead, *last)}.",
        ) from error


@dataclass
class _Group:
    """Steps of one space in several rows of the batch, with equally many units each. N tokens of the batch."""

    space: Space
    rows: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    current: list[Tensor] = field(default_factory=list)
    taken_in: Tensor | None = None
    """(N, *token_shape) what a transcoder has read in this pass."""

    def add(self, row: int, step: Step) -> None:
        P, k = len(step.columns), len(step.units)
        self.rows.append(step.columns.new_full((P,), row))
        self.columns.append(step.columns)
        self.units.append(step.units.expand(P, k))
        self.values.append(step.values)
        if step.current is not None:
            self.current.append(step.current)

    def close(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        current = torch.cat(self.current) if self.current else None
        return torch.cat(self.rows), torch.cat(self.columns), torch.cat(self.units), torch.cat(self.values), current


class _Ready(NamedTuple):
    group: _Group
    place: tuple[Tensor, Tensor]
    units: Tensor
    values: Tensor
    current: Tensor | None


class BatchChanges:
    """The changes of a batch. It stands in place of the window of a pass (:class:`saekit.lm.run.hooks.Window`).

    Args:
        batch: variants, in the order of the rows of the batch.
        first: the column that the pass begins with.
    """

    def __init__(self, batch: Sequence[Prepared], first: int = 0) -> None:
        groups: dict[Any, _Group] = {}
        for row, variant in enumerate(batch):
            for step in variant.steps:
                fresh = step.current is not None
                key = step.space.key, step.space.site_out, len(step.units), fresh
                groups.setdefault(key, _Group(step.space)).add(row, step)
        self._writes: dict[Site, list[_Ready]] = defaultdict(list)
        self._reads: dict[Site, list[_Ready]] = defaultdict(list)
        for group in groups.values():
            rows, columns, units, values, current = group.close()
            ready = _Ready(group, (rows, columns - first), units, values, current)
            self._writes[group.space.site_out].append(ready)
            if current is None and group.space.relative and group.space.site != group.space.site_out:
                self._reads[group.space.site].append(ready)
        for ready_here in self._writes.values():
            ready_here.sort(key=lambda ready: ready.group.space.relative)
        self.edits = {site: [Edit(site, _never)] for site in sorted({*self._writes, *self._reads})}

    def apply(self, edit: Edit, x: Tensor) -> Tensor:
        """`x` (n, T, ...), or a pattern (n, heads, queries, keys), with the changes of this site made."""
        pattern = edit.site.kind == "pattern"
        original = x.transpose(1, 2) if pattern else x
        new = original
        currents = [self._current(ready, original) for ready in self._writes[edit.site]]
        for ready, current in zip(self._writes[edit.site], currents):
            rows = new[ready.place]
            written = ready.group.space.write_each(rows, ready.units.to(x.device), ready.values.to(x.device), current=current)
            new = new.index_put(ready.place, written)
        for ready in self._reads[edit.site]:
            ready.group.taken_in = new[ready.place]
        if new is original:
            return x
        return new.transpose(1, 2) if pattern else new

    @staticmethod
    def _current(ready: _Ready, x: Tensor) -> Tensor | None:
        space = ready.group.space
        if not space.relative or ready.current is not None:
            return ready.current
        if ready.group.taken_in is None:
            return space.read_each(x[ready.place], ready.units)
        return space.read_each(ready.group.taken_in, ready.units, out=x[ready.place])


def _never(rows: Tensor, at: Any) -> Tensor:
    raise AssertionError("the changes of a batch are applied by its window")
