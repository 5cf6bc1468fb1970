"""Methods that locate the objects behind a behaviour. Each returns a :class:`saekit.tasks.Ranking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.causal import (
        ablation,
        attention_knockout,
        causal_tracing,
        exhaustive_ablation,
        heads,
        patching,
        path_patching,
        set_effect,
        trace,
    )

__all__ = [
    "ablation",
    "attention_knockout",
    "causal_tracing",
    "exhaustive_ablation",
    "heads",
    "patching",
    "path_patching",
    "set_effect",
    "trace",
]

__getattr__ = attributes(__name__, dict.fromkeys(__all__, "saekit.locate.causal"))
