"""Decoding by contrast of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.decode.dola import DoLa, candidate_layers

_HOMES = {"saekit.steer.decode.dola": ("DoLa", "candidate_layers")}

__all__ = ["DoLa", "candidate_layers"]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
