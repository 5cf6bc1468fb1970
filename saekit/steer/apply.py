"""How an intervention becomes edits of a model's activations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.lm import Edit
from saekit.objects import Directions, Ref, Space, space_of
from saekit.objects.lookup import token_shape
from saekit.steer.change import ORDER, Change

if TYPE_CHECKING:
    from saekit.lm import At, LanguageModel

_LAST = max(ORDER.values()) + 1


def edits_of(lm: LanguageModel, changes: Iterable[Change]) -> list[Edit]:
    """One edit for each space and choice of positions, and one more where something is added.

    All changes to a space that depend on it (ablate, clamp, patch, scale) come from one reading. What is added depends on
    nothing, so it comes last without another reading. A transcoder is read by an edit of its own, at the site it reads.
    """
    groups: dict[Any, list[Change]] = defaultdict(list)
    for change in sorted(changes, key=_canonical):
        kind = change.target.kind if isinstance(change.target, Ref) else "vector"
        groups[kind, change.site, change.positions].append(change)
    edits: list[Edit] = []
    for (_, _, positions), group in groups.items():
        space, units = _space_and_units(lm, group)
        placed = [(change.resolved(space, unit), unit) for change, unit in zip(group, units)]
        reading = [pair for pair in placed if pair[0].op != "add"]
        if reading:
            setter = _Set.of(space, reading)
            if space.site_out != space.site:
                setter.relay = Relay(space, setter.units)
                edits.append(Edit(space.site, setter.relay, _LAST, positions))
            edits.append(Edit(space.site_out, setter, min(ORDER[change.op] for change, _ in reading), positions))
        adding = [pair for pair in placed if pair[0].op == "add"]
        if adding:
            edits.append(Edit(space.site_out, _Add(space, *_merged(adding, torch.add)), ORDER["add"], positions))
    return sorted(edits, key=lambda edit: edit.order)


def _canonical(change: Change) -> Any:
    """Sorts changes so that the order in which they were given makes no difference, not even to rounding."""
    target = change.target
    name = (0, str(target), []) if isinstance(target, Ref) else (1, str(target.site), target.values.tolist())
    return ORDER[change.op], name, change.strength.values, change.strength.unit


def _space_and_units(lm: LanguageModel, changes: list[Change]) -> tuple[Space, list[int]]:
    refs = [change.target for change in changes if isinstance(change.target, Ref)]
    if refs:
        space = space_of(lm, refs[0])
        space.check([ref.unit for ref in refs])
        return space, [ref.unit for ref in refs]
    vectors = [change.target.values for change in changes if not isinstance(change.target, Ref)]
    site = lm.site(changes[0].site)
    return Directions(site, torch.stack(vectors), token_shape(lm, site)), list(range(len(vectors)))


@dataclass
class _Amounts:
    """What several units are given: (rows, units, *unit_shape), where rows are one for all, or prompts, or positions."""

    values: Tensor
    by_position: bool = False

    @classmethod
    def stack(cls, changes: list[Change]) -> _Amounts:
        amounts = [change.amounts for change in changes if change.amounts is not None]
        by_position = changes[0].op == "patch"
        rows = max(len(amount) for amount in amounts)
        if any(len(amount) not in ({rows} if by_position else {1, rows}) for amount in amounts):
            counts = sorted({len(amount) for amount in amounts})
            raise InterventionError(f"Changes to one space have values for {counts} rows.", "Give as many to each.")
        return cls(torch.stack([amount.expand(rows, *amount.shape[1:]) for amount in amounts], 1), by_position)

    def at(self, at: At, like: Tensor) -> Tensor:
        """(1 or N, units, *unit_shape) for these tokens, in the dtype of `like`."""
        values = self.values.to(like.device, like.dtype)
        if len(values) == 1 and not self.by_position:
            return values
        index = (at.position_N if self.by_position else at.batch_N).to(like.device)
        if int(index.max()) >= len(values):
            what = "positions" if self.by_position else "prompts"
            raise InterventionError(
                f"An intervention has values for {len(values)} {what}, and is applied to number {int(index.max())}.",
                "Choose its positions." if self.by_position else "Give one strength, or one for each prompt.",
            )
        return values[index]


@dataclass
class _Set:
    """Reads units once, changes their coefficients step by step, and writes them back."""

    space: Space
    units: list[int]
    steps: list[tuple[str, Tensor, _Amounts]]
    """(operation, which of `units`, amounts)."""
    relay: Relay | None = None

    @classmethod
    def of(cls, space: Space, placed: list[tuple[Change, int]]) -> _Set:
        units = sorted({unit for _, unit in placed})
        column = {unit: i for i, unit in enumerate(units)}
        steps = []
        for op in ORDER:
            mine = [(change, unit) for change, unit in placed if change.op == op]
            if not mine:
                continue
            if op == "scale":
                merged, amounts = _merged(mine, torch.mul)
                amounts.values = amounts.values.reshape(*amounts.values.shape[:2], *(1 for _ in space.unit_shape))
            else:
                merged, amounts = [unit for _, unit in mine], _Amounts.stack([change for change, _ in mine])
            steps.append((op, torch.tensor([column[unit] for unit in merged]), amounts))
        sets = [unit for change, unit in placed if change.op in ("clamp", "patch")]
        ablations = [unit for change, unit in placed if change.op == "ablate"]
        for given in (sets, ablations):
            if twice := [unit for unit in given if given.count(unit) > 1]:
                raise InterventionError(f"{space.label} {twice[0]} at {space.site} is set twice at once.", "Set it once.")
        return cls(space, units, steps)

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        current = self.space.read(rows, self.units) if self.relay is None else self.relay.take()
        new = current
        for op, columns, amounts in self.steps:
            columns = columns.to(new.device)
            given = amounts.at(at, new)
            if op == "scale":
                given = given * new.index_select(1, columns)
            new = new.index_copy(1, columns, given.expand(len(new), *given.shape[1:]))
        return self.space.write(rows, self.units, new, current=current)


@dataclass
class _Add:
    space: Space
    units: list[int]
    amounts: _Amounts

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        return self.space.add(rows, self.units, self.amounts.at(at, rows))


@dataclass
class Relay:
    """Carries the coefficients read at a transcoder's input to the edit at its output, within one forward pass."""

    space: Space
    units: list[int]
    current: Tensor | None = None

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        self.current = self.space.read(rows, self.units)
        return rows

    def take(self) -> Tensor:
        if self.current is None:
            raise InterventionError(
                f"{self.space.site_out} was reached without {self.space.site}, where its features are read.",
                "Start the run at an earlier layer.",
            )
        current, self.current = self.current, None
        return current


def _merged(placed: list[tuple[Change, int]], combine: Any) -> tuple[list[int], _Amounts]:
    """Changes of one operation with those of the same unit combined, in the order of the units."""
    by_unit: dict[int, Change] = {}
    for change, unit in placed:
        if unit in by_unit:
            before, now = by_unit[unit].amounts, change.amounts
            assert before is not None and now is not None
            if len(before) != len(now) and 1 not in (len(before), len(now)):
                raise InterventionError(
                    f"{change.target} has strengths for {len(before)} and {len(now)} prompts.", "Give as many."
                )
            by_unit[unit] = Change(change.op, change.target, change.strength, amounts=combine(before, now))
        else:
            by_unit[unit] = change
    units = sorted(by_unit)
    return units, _Amounts.stack([by_unit[unit] for unit in units])
