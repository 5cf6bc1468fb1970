"""Changes of weights: additive, saved as files, applied inside `with lm.edited(delta):` and undone bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.weights.delta import WeightDelta, edit_facts
    from saekit.steer.weights.facts import Fact, Question, read_facts, write_facts
    from saekit.steer.weights.keys import KeyStatistics
    from saekit.steer.weights.located import ranked_layers
    from saekit.steer.weights.rewrite import EDITS, edit
    from saekit.steer.weights.values import EditOptions

_HOMES = {
    "saekit.steer.weights.delta": ("WeightDelta", "edit_facts"),
    "saekit.steer.weights.facts": ("Fact", "Question", "read_facts", "write_facts"),
    "saekit.steer.weights.keys": ("KeyStatistics",),
    "saekit.steer.weights.located": ("ranked_layers",),
    "saekit.steer.weights.rewrite": ("EDITS", "edit"),
    "saekit.steer.weights.values": ("EditOptions",),
}

__all__ = [
    "EDITS",
    "EditOptions",
    "Fact",
    "KeyStatistics",
    "Question",
    "WeightDelta",
    "edit",
    "edit_facts",
    "ranked_layers",
    "read_facts",
    "write_facts",
]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
