"""Interventions in the formats of other tools: export with equal logits or a typed refusal, and import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.exchange.orthogonal import erase
    from saekit.steer.exchange.registry import FORMATS, Format, export, import_

_HOMES = {
    "saekit.steer.exchange.orthogonal": ("erase",),
    "saekit.steer.exchange.registry": ("FORMATS", "Format", "export", "import_"),
}

__all__ = ["FORMATS", "Format", "erase", "export", "import_"]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
