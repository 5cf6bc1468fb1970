"""Methods that locate the objects behind a behaviour. Each returns a :class:`saekit.tasks.Ranking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.causal import exhaustive_ablation, heads

__all__ = ["exhaustive_ablation", "heads"]

__getattr__ = attributes(__name__, dict.fromkeys(__all__, "saekit.locate.causal"))
