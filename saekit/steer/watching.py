"""The conditions of an intervention in a model: their objects, thresholds and the edits that read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from saekit.errors import InterventionError
from saekit.objects import Space
from saekit.objects.patterns import PatternEntries, PatternRows
from saekit.steer.change import Change
from saekit.steer.condition import Condition
from saekit.steer.readers import Watch
from saekit.steer.strength import NormSource, StatsSource, Strength
from saekit.steer.target import place

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


class Watching:
    """The different conditions of some changes, each with one :class:`Watch`.

    Raises:
        UnknownRef: a condition is on an object that the model lacks.
        InterventionError: an object cannot be compared with a number, or no token of the vocabulary fulfils a condition.
    """

    def __init__(self, lm: LanguageModel, changes: Sequence[Change]) -> None:
        self._lm = lm
        self._places: dict[Any, tuple[Space, int]] = {}
        self._resolved: dict[Any, Condition] = {}
        self._watches: dict[Any, Watch] = {}
        for condition in (each for change in changes for each in change.when):
            self._resolved[condition.key] = condition
            if condition.target is not None and condition.key not in self._places:
                space, unit = place(lm, condition.target)
                if isinstance(space, PatternRows | PatternEntries):
                    raise InterventionError(f"{condition.what} cannot be a condition.", "Use an object at another site.")
                self._places[condition.key] = space, unit

    @property
    def limits(self) -> list[tuple[Change, Space]]:
        """For each threshold that needs a measure, a change whose amount is the threshold, and its space."""
        return [
            (self._limit(condition), self._places[key][0])
            for key, condition in self._resolved.items()
            if condition.target is not None and condition.threshold is None
        ]

    @staticmethod
    def _limit(condition: Condition) -> Change:
        assert condition.target is not None and isinstance(condition.value, Strength)
        return Change("cap", condition.target, condition.value)

    def resolve(self, stats: StatsSource | None, norms: NormSource | None) -> None:
        """Turn the thresholds into coefficients, and make the watches."""
        for key, condition in self._resolved.items():
            if condition.target is not None:
                space, unit = self._places[key]
                if condition.threshold is None:
                    limit = self._limit(condition).resolved(space, unit, stats, norms).amounts
                    assert limit is not None
                    condition = self._resolved[key] = condition.with_threshold(float(limit))
                self._watches[key] = Watch(condition, space, unit)
            elif condition.what == "token":
                self._watches[key] = Watch(condition, tokens=self._tokens(condition))
            else:
                self._watches[key] = Watch(condition, lm=self._lm)

    def _tokens(self, condition: Condition) -> Any:
        """(vocabulary,) bool: the tokens whose text fulfils the condition."""
        size = int(self._lm.embedding.num_embeddings)  # type: ignore[arg-type]
        wanted = str(condition.value)
        texts = self._lm.text.token_strings(range(size))
        if condition.sign == "==":
            found = torch.tensor([text == wanted for text in texts])
        else:
            pattern = re.compile(wanted)
            found = torch.tensor([pattern.search(text) is not None for text in texts])
        if not bool(found.any()):
            raise InterventionError(
                f"No token of {self._lm.name} is {wanted!r:.40}.", "Give the text of a token, space included."
            )
        return found

    def resolved(self, change: Change) -> Change:
        """The change with its thresholds."""
        return replace(change, when=tuple(self._resolved[each.key] for each in change.when)) if change.when else change

    def of(self, change: Change) -> tuple[Watch, ...]:
        """The watches of the conditions of a change."""
        return tuple(self._watches[each.key] for each in change.when)
