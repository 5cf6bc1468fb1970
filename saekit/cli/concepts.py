"""Features that steer towards concepts, by their names, for commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saekit.cli.output import say

if TYPE_CHECKING:
    from saekit.cli.subject import Subject
    from saekit.workspace.by_concept import Tried

_SHOWN = 3


@dataclass(frozen=True)
class Found:
    """What trials found, by the name of the concept."""

    tried: Mapping[str, Sequence[Tried]] = field(default_factory=dict)

    @property
    def features(self) -> list[str]:
        """The best feature of each concept with its strength, as --feature takes it."""
        return [
            f"{each[0].record.dictionary}/{each[0].record.feature}:{each[0].strength:.3g}norm" for each in self.tried.values()
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: [each.to_dict() for each in found] for name, found in self.tried.items()}


def by_concept(subject: Subject, concepts: Sequence[str], name: str, *, progress: bool) -> Found:
    """Try the features of each concept, and say which are best.

    Raises:
        ConfigError: the subject is no workspace, or nothing is found that steers towards a concept.
    """
    from saekit.errors import ConfigError

    if not concepts:
        return Found()
    ws = subject.workspace
    if ws is None:
        raise ConfigError(f"{subject.lm.name} is a model, and --concept needs a workspace.", "`saekit fit` makes one.")
    from saekit.workspace.by_concept import steering_features

    tried = {}
    for concept in concepts:
        found = steering_features(ws, concept, ws.dictionaries.address(None, name) if name else None, progress=progress)
        if not found or not found[0].effect:
            raise ConfigError(
                f"No feature that a search finds steers towards {concept!r:.60}.",
                "Try another name, or fit a vector to texts: `saekit vector fit`.",
            )
        tried[concept] = found
        if progress:
            best = ", ".join(f"{each.record.feature} ({each.effect:.2f})" for each in found[:_SHOWN])
            say(f"{concept}: features by their effect in a trial: {best}; at {found[0].strength:.2g} norms")
    return Found(tried)
