"""How an intervention becomes edits of a model's activations: one edit for each space.

All changes to a space are computed from one reading of its original activation, at every token and however their positions are
written. Where changes have different positions, the edit covers the union of these, and tokens at which the same changes hold are
computed together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.lm import Edit
from saekit.names.positions import AnyPositions, Choice, EveryToken, TokenPositions
from saekit.names.site import Site
from saekit.objects import Directions, Ref, Space
from saekit.objects.patterns import PatternEntries, PatternRows
from saekit.steer.amounts import Amounts
from saekit.steer.by_query import by_query
from saekit.steer.change import Change
from saekit.steer.operations import OPERATIONS, Operation
from saekit.steer.readers import Relay, Watch
from saekit.steer.schedule import Schedule

if TYPE_CHECKING:
    from saekit.lm import At

_AFTER_ALL = 1 << 30
"""Order of the edit that reads a transcoder's input: it comes after every change there."""
_BEFORE_ALL = -_AFTER_ALL
"""Order of the edits that read conditions."""


class Placed(NamedTuple):
    """A change with its amounts, and the unit of a space that it changes."""

    change: Change
    space: Space
    unit: int
    watches: tuple[Watch, ...] = ()
    """Find where the conditions of the change hold."""

    @property
    def operation(self) -> Operation:
        """What the change does."""
        return OPERATIONS[self.change.op]


class Reading(NamedTuple):
    """Coefficients of units that have been read."""

    units: list[int]
    current: Tensor
    """(N, units, *unit_shape)."""


def edits_of(placed: Iterable[Placed]) -> list[Edit]:
    """One edit for each space, and one more where a transcoder is read, at the site that it reads, and where a condition is.

    Raises:
        InterventionError: two changes are known to conflict, amounts do not fit together, or a condition is read after the
            change. Conflicts that depend on the tokens are found when the edit is applied.
    """
    spaces: dict[Any, list[Placed]] = defaultdict(list)
    for each in sorted(placed, key=lambda each: _canonical(each.change)):
        spaces[each.space.key].append(each)  # neuron:2/3 and residual:neurons.2/3 are in one space
    edits = _watching([each for group in spaces.values() for each in group])
    for group in spaces.values():
        space, setter = group[0].space, SpaceEdit.of(group)
        positions = setter.choices[0] if len(setter.choices) == 1 else AnyPositions(setter.choices)
        readers = [each.operation.order for each in group if each.operation.reads]
        if readers and space.site_out != space.site:
            setter.relay = Relay(space, sorted({each.unit for each in group}))
            edits.append(Edit(space.site, setter.relay, _AFTER_ALL, positions))
        order = min(readers) if readers else min(each.operation.order for each in group)
        edits.append(Edit(space.site_out, setter, order, positions))
    return sorted(edits, key=lambda edit: edit.order)


def _watching(placed: Sequence[Placed]) -> list[Edit]:
    """The edits that read conditions, each condition once: at the site of its object, or at the first site that is changed."""
    sites: dict[int, Site] = {}
    edits = []
    for each in placed:
        for watch in each.watches:
            if watch.condition.what in ("position", "prompt"):
                continue
            if id(watch) not in sites:
                mine = [other.space.site_out for other in placed if watch in other.watches]
                sites[id(watch)] = min(mine) if watch.space is None else watch.space.site
                edits.append(Edit(sites[id(watch)], watch, _BEFORE_ALL, EveryToken()))
            if each.space.site_out < sites[id(watch)]:
                what, site = watch.condition.what, sites[id(watch)]
                raise InterventionError(
                    f"The condition on {what} is read at {site}, after {each.change.target} is changed.",
                    f"Choose an object at {each.space.site_out} or before it.",
                )
    return edits


def _canonical(change: Change) -> Any:
    """Sorts changes so that the order in which they were given makes no difference, not even to rounding."""
    where = repr([condition.key for condition in change.when]), str(change.decay)
    return OPERATIONS[change.op].order, change.op, _name(change), change.strength.values, change.strength.unit, where


def _name(change: Change) -> Any:
    """Sortable, and equal for changes of one unit of a space."""
    target = change.target
    return (0, str(target), []) if isinstance(target, Ref) else (1, str(target.site), target.values.tolist())


@dataclass
class SpaceEdit:
    """All changes to one space. Called with the rows of the union of their positions."""

    choices: tuple[Choice | None, ...]
    """The different positions of the changes."""
    groups: list[list[Placed]]
    """The changes that have each of these positions."""
    watches: tuple[tuple[Watch, ...], ...]
    """The conditions of these changes. Changes of one place in these lists have the same ones."""
    relay: Relay | None = None
    plans: dict[tuple[int, ...], Plan] = field(default_factory=dict)
    """What is done where exactly these of the positions hold, made when first needed."""

    @classmethod
    def of(cls, group: Sequence[Placed]) -> SpaceEdit:
        together: dict[Any, list[Placed]] = defaultdict(list)
        for each in group:
            together[each.change.choice, tuple(map(id, each.watches))].append(each)
        groups = list(together.values())
        made = cls(tuple(choice for choice, _ in together), groups, tuple(each[0].watches for each in groups))
        for i in range(len(groups)):
            made.plan((i,))
        for i, j in combinations(range(len(groups)), 2):
            conditional = made.watches[i] or made.watches[j]  # then the tokens decide
            if not conditional and surely_overlap(made.choices[i], made.choices[j]):
                made.plan((i, j))
        return made

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        if isinstance(self.groups[0][0].space, PatternRows | PatternEntries):
            return by_query(rows, at, self._changed)
        return self._changed(rows, at)

    def _changed(self, rows: Tensor, at: At) -> Tensor:
        read = None if self.relay is None else Reading(self.relay.units, self.relay.take(at))
        if len(self.choices) == 1 and not self.watches[0]:
            return self.plan((0,)).apply(rows, at, read)
        read = read or self._reading(rows)
        holds_NC = torch.stack([self._holds(i, at).to(rows.device) for i in range(len(self.choices))], 1)
        different, which_N = holds_NC.unique(dim=0, return_inverse=True)
        new = rows
        for number, holds in enumerate(different):
            if not bool(holds.any()):
                continue
            index = (which_N == number).nonzero().squeeze(1)
            plan = self.plan(tuple(holds.nonzero().squeeze(1).tolist()))
            given = None if read is None else Reading(read.units, read.current[index])
            new = new.index_copy(0, index, plan.apply(rows[index], at.rows(index.to(at.batch_N.device)), given))
        return new

    def _holds(self, number: int, at: At) -> Tensor:
        """(N,) where the changes of a group are made."""
        holds = at.within(self.choices[number])
        for watch in self.watches[number]:
            holds = holds & watch.holds(at).to(holds.device)
        return holds

    def _reading(self, rows: Tensor) -> Reading | None:
        """The coefficients of all units at all rows, read once. None where nothing is read, or each plan numbers its units."""
        placed = [each for group in self.groups for each in group]
        if isinstance(placed[0].space, Directions) or not any(each.operation.reads for each in placed):
            return None
        units = sorted({each.unit for each in placed})
        return Reading(units, placed[0].space.read(rows, units))

    def plan(self, which: tuple[int, ...]) -> Plan:
        """What is done where these of the choices hold and no other.

        Raises:
            InterventionError: a unit is set twice there, or amounts do not fit together.
        """
        if which not in self.plans:
            self.plans[which] = Plan.of([each for i in which for each in self.groups[i]])
        return self.plans[which]


class _Step(NamedTuple):
    """One operation on some of the units of a plan."""

    op: str
    columns: Tensor
    """Which of the units."""
    amounts: Amounts
    decay: Schedule | None
    every: bool
    """`columns` are all units in their order."""

    def factor(self, at: At, like: Tensor) -> Tensor | None:
        """The factor of the effect at each token, (N, 1, ...) with as many dimensions as `like`; None for 1."""
        if self.decay is None:
            return None
        return self.decay.at(at.step_N).to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def made(self, current: Tensor, at: At) -> Tensor:
        """The coefficients of its units after it."""
        new = applied(self.op, current, self.amounts.at(at, current))
        factor = self.factor(at, current)
        return new if factor is None else torch.where(factor == 1, new, current + factor * (new - current))


@dataclass
class Plan:
    """Changes to one space that hold at the same tokens."""

    space: Space
    units: list[int]
    steps: list[_Step]
    """In the order in which they are made."""
    reads: bool

    @classmethod
    def of(cls, placed: Sequence[Placed]) -> Plan:
        space, placed = _together(sorted(placed, key=lambda each: _canonical(each.change)))
        units = sorted({each.unit for each in placed})
        column = {unit: i for i, unit in enumerate(units)}
        steps = []
        different = {(each.change.op, each.change.decay) for each in placed}
        for name, decay in sorted(different, key=lambda step: (OPERATIONS[step[0]].order, step[0], str(step[1]))):
            operation = OPERATIONS[name]
            mine = [each for each in placed if (each.change.op, each.change.decay) == (name, decay)]
            if operation.merge is not None:
                mine = _merged(mine, operation)
            amounts = Amounts.stack([each.change for each in mine], operation)
            if operation.factor or operation.length:
                amounts.values = amounts.values.reshape(*amounts.values.shape[:2], *(1 for _ in space.unit_shape))
            columns = [column[each.unit] for each in mine]
            steps.append(_Step(name, torch.tensor(columns), amounts, decay, columns == list(range(len(units)))))
        exclusive = [(each.operation.order, each.unit) for each in placed if each.operation.merge is None]
        for order, unit in exclusive:
            if exclusive.count((order, unit)) > 1:
                target = next(each.change.target for each in placed if each.unit == unit)
                raise InterventionError(f"{target} is set twice at one token.", "Set it once, or at other positions.")
        return cls(space, units, steps, any(each.operation.reads for each in placed))

    def apply(self, rows: Tensor, at: At, read: Reading | None) -> Tensor:
        """`rows` changed; `read` are coefficients that have been read already, those of the units among them."""
        if not self.reads:
            total = None
            for step in self.steps:
                given = step.amounts.at(at, rows)
                factor = step.factor(at, given)
                given = given if factor is None else given * factor
                if not step.every:
                    part = given.new_zeros(len(given), len(self.units), *given.shape[2:])
                    given = part.index_copy(1, step.columns.to(rows.device), given)
                total = given if total is None else total + given
            assert total is not None
            return self.space.add(rows, self.units, total)
        if read is None:
            current = self.space.read(rows, self.units)
        else:
            current = read.current[:, [read.units.index(unit) for unit in self.units]]
        new = current
        for step in self.steps:
            if step.every:
                new = step.made(new, at)
                continue
            columns = step.columns.to(new.device)
            new = new.index_copy(1, columns, step.made(new.index_select(1, columns), at))
        return self.space.write(rows, self.units, new, current=current)


def applied(name: str, current: Tensor, amounts: Tensor) -> Tensor:
    made = OPERATIONS[name].apply(current, amounts)
    try:
        return made.to(current.dtype).expand(current.shape)
    except (RuntimeError, AttributeError) as error:
        raise InterventionError(
            f"The operation {name!r} returned {tuple(getattr(made, 'shape', ()))} for coefficients {tuple(current.shape)}.",
            "Return one new value for each coefficient.",
        ) from error


def _together(placed: Sequence[Placed]) -> tuple[Space, list[Placed]]:
    """The space that all lie in. Vectors are numbered in it: together they span one space, in which equal ones are one unit."""
    if not isinstance(placed[0].space, Directions):
        return placed[0].space, list(placed)
    vectors: list[Tensor] = []
    numbered = []
    for each in placed:
        (values,) = each.space.vectors([each.unit])
        unit = next((i for i, vector in enumerate(vectors) if torch.equal(vector, values)), len(vectors))
        if unit == len(vectors):
            vectors.append(values)
        numbered.append(each._replace(unit=unit))
    space = placed[0].space
    return Directions(space.site, torch.stack(vectors), space.token_shape), numbered


def _merged(placed: list[Placed], operation: Operation) -> list[Placed]:
    """Changes of one operation with those of the same unit combined, in the order of the units."""
    assert operation.merge is not None
    by_unit: dict[int, Placed] = {}
    for each in placed:
        if each.unit in by_unit:
            before, now = by_unit[each.unit].change, each.change
            assert before.amounts is not None and now.amounts is not None
            if len(before.amounts) != len(now.amounts) and 1 not in (len(before.amounts), len(now.amounts)):
                raise InterventionError(
                    f"{now.target} has strengths for {len(before.amounts)} and {len(now.amounts)} prompts.",
                    "Give each change as many strengths.",
                )
            amounts = operation.merge(before.amounts, now.amounts)
            each = each._replace(change=replace(now, amounts=amounts))
        by_unit[each.unit] = each
    return [by_unit[unit] for unit in sorted(by_unit)]


def surely_overlap(one: Choice | None, other: Choice | None) -> bool:
    """Whether two choices of positions have a token in common whatever the prompt. False where it depends on the prompt."""
    if one == other:
        return True
    if not isinstance(one, TokenPositions) or not isinstance(other, TokenPositions):
        return False
    if one.policy and other.policy:
        return {one.policy, other.policy} not in ({"last", "generated"}, {"prompt", "generated"})
    if one.policy or other.policy:
        return False
    rows, others = one.rows or (one.places,), other.rows or (other.places,)
    count = max(len(rows), len(others))
    pairs = zip(rows * (count if one.rows is None else 1), others * (count if other.rows is None else 1))
    return any(mine and theirs and not set(mine).isdisjoint(theirs) for mine, theirs in pairs)
