"""Changes of weights: additive, saved as files, applied inside `with lm.edited(delta):` and undone bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.weights.delta import WeightDelta, edit_facts

_HOMES = {
    "saekit.steer.weights.delta": ("WeightDelta", "edit_facts"),
}

__all__ = ["WeightDelta", "edit_facts"]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
