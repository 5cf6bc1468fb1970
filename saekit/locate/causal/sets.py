"""Joint ablation: objects that stand in for each other have no effect alone, and a large one together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.planner import Replace, Variant
from saekit.locate.causal.effects import AnyMetric, chosen
from saekit.locate.causal.places import Place, named_place
from saekit.locate.causal.sources import Prompts, Replacement, Source
from saekit.locate.scored import bootstrap, prepared
from saekit.objects import Ref, Space, space_of
from saekit.tasks import Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@dataclass(frozen=True)
class SetEffect:
    """The effect of ablating several objects together. B prompts.

    Attributes:
        refs: the objects.
        effect: metric(intact) - metric(all ablated), the mean over the prompts.
        interval: its 95 % bootstrap interval; None for one prompt.
        alone: the sum of the effects of ablating each alone.
        per_example: (B,) float64 the effect on each prompt.
    """

    refs: tuple[Ref, ...]
    effect: float
    interval: tuple[float, float] | None
    alone: float
    per_example: Tensor

    @property
    def interaction(self) -> float:
        """effect - alone: positive where the objects stand in for each other, negative where each needs the others."""
        return self.effect - self.alone


@torch.no_grad()
def set_effects(
    lm: LanguageModel,
    data: Task,
    sets: Iterable[Iterable[Ref | str]],
    *,
    metric: AnyMetric | str | None = None,
    replacement: Replacement | str = "zero",
    progress: bool = True,
) -> list[SetEffect]:
    """The effect of ablating each of several sets of objects. Refs may carry positions: `head:3.5[subject]`.

    Args:
        lm: the model.
        data: the task.
        sets: each a list of objects.
        metric, replacement: as for :func:`saekit.locate.causal.ablation`.
        progress: show a bar.

    Raises:
        UnknownRef: the model has no such object.
        ConfigError: a set is empty, or names one object twice at overlapping positions; or the task or metric does not fit.
    """
    listed = [tuple(dict.fromkeys(map(Ref.parse, refs))) for refs in sets]
    if not all(listed):
        raise ConfigError("A set of objects to ablate is empty.", "Name at least one object in each set.")
    task, found = prepared(lm, data, metric)
    how = Replacement(replacement) if isinstance(replacement, str) else replacement
    members = list(dict.fromkeys(ref for refs in listed for ref in refs))
    spaces = {ref: space_of(lm, ref) for ref in members}
    clean = Prompts.clean(lm, task)
    unique = list({space.key: space for space in spaces.values()}.values())
    joint = Joint(
        clean, how.source(clean, task, unique), {ref: (spaces[ref], named_place(task, ref.position)) for ref in members}
    )
    groups = list(dict.fromkeys([*((ref,) for ref in members), *listed]))
    values_SB = -joint.effects(groups, found, progress=progress)
    values = dict(zip(groups, values_SB))
    low, high = bootstrap(values_SB)
    bounds = dict(zip(groups, zip(low.tolist(), high.tolist())))
    return [
        SetEffect(
            refs,
            float(values[refs].mean()),
            bounds[refs] if len(task) > 1 else None,
            sum(float(values[(ref,)].mean()) for ref in refs),
            values[refs],
        )
        for refs in listed
    ]


def set_effect(lm: LanguageModel, data: Task, refs: Iterable[Ref | str], **settings: object) -> SetEffect:
    """The effect of ablating `refs` together; settings and errors are those of :func:`set_effects`."""
    return set_effects(lm, data, [refs], **settings)[0]  # type: ignore[arg-type]


def redundant_pairs(lm: LanguageModel, data: Task, refs: Iterable[Ref | str], **settings: object) -> list[SetEffect]:
    """All pairs of `refs`, those first whose joint effect exceeds the sum of their single effects most.

    n objects need n (n + 1) / 2 ablations of every prompt. Settings and errors are those of :func:`set_effects`.
    """
    members = list(dict.fromkeys(map(Ref.parse, refs)))
    pairs = set_effects(lm, data, combinations(members, 2), **settings)  # type: ignore[arg-type]
    return sorted(pairs, key=lambda pair: -pair.interaction)


class _Part(NamedTuple):
    ref: Ref
    space: Space
    columns: tuple[int, ...]


@dataclass
class Joint:
    """Replaces the coefficients of several objects together.

    Attributes:
        prompts: what is run and changed.
        source: what coefficients are replaced with.
        placed: the space of each object and where it is changed.
    """

    prompts: Prompts
    source: Source
    placed: dict[Ref, tuple[Space, Place]]

    def effects(self, groups: Sequence[tuple[Ref, ...]], metric: AnyMetric, *, progress: bool) -> Tensor:
        """(S, B) float64: metric(changed) - metric(unchanged) of each group on each prompt."""
        B, planner = len(self.prompts.rows), self.prompts.planner
        base_B = planner.metric(metric).double().cpu()
        variants = [
            Variant(row, self._replaced(refs, row, draw))
            for refs in groups
            for row in range(B)
            for draw in range(self.source.draws)
        ]
        values = planner.effects(variants, metric, progress=progress).double().cpu()
        return values.reshape(len(groups), B, self.source.draws).mean(2) - base_B

    def _replaced(self, refs: Sequence[Ref], row: int, draw: int) -> tuple[Replace, ...]:
        """One replacement for each space and set of units at the same positions."""
        T = len(self.prompts.rows[row])
        units: dict[tuple[Hashable, tuple[int, ...]], list[_Part]] = defaultdict(list)
        taken: set[tuple[Hashable, int, int]] = set()
        for ref in refs:
            space, place = self.placed[ref]
            columns = place.columns[row]
            columns = tuple(range(T)) if columns is None else columns
            for t in columns:
                if (space.key, ref.unit, t) in taken:
                    raise ConfigError(f"{ref} is in the set twice at position {t}.", "Name each object once for each position.")
                taken.add((space.key, ref.unit, t))
            if columns:
                units[space.key, columns].append(_Part(ref, space, columns))
        return tuple(self._replace(sorted(parts, key=lambda part: part.ref.unit), row, draw) for parts in units.values())

    def _replace(self, parts: Sequence[_Part], row: int, draw: int) -> Replace:
        space, columns = parts[0].space, parts[0].columns
        units = torch.tensor([part.ref.unit for part in parts])
        new = self.source.new(space, row, draw)
        return Replace(space, units.tolist(), chosen(new.of(units), columns), columns)
