"""Causal methods: change an object, run the model, and measure what changes. Nothing is approximated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.causal.ablate import ablation
    from saekit.locate.causal.exhaustive import exhaustive_ablation, heads
    from saekit.locate.causal.heat import Trace, trace
    from saekit.locate.causal.knockout import attention_knockout
    from saekit.locate.causal.patch import Patched, patch_both, patching
    from saekit.locate.causal.paths import path_patching
    from saekit.locate.causal.prompt import prompt_task
    from saekit.locate.causal.sets import SetEffect, redundant_pairs, set_effect, set_effects
    from saekit.locate.causal.sources import Replacement
    from saekit.locate.causal.tracing import Noise, causal_tracing

__all__ = [
    "Noise",
    "Patched",
    "Replacement",
    "SetEffect",
    "Trace",
    "ablation",
    "attention_knockout",
    "causal_tracing",
    "exhaustive_ablation",
    "heads",
    "patch_both",
    "patching",
    "path_patching",
    "prompt_task",
    "redundant_pairs",
    "set_effect",
    "set_effects",
    "trace",
]

_HOMES = {
    "ablate": ("ablation",),
    "exhaustive": ("exhaustive_ablation", "heads"),
    "knockout": ("attention_knockout",),
    "patch": ("Patched", "patch_both", "patching"),
    "paths": ("path_patching",),
    "prompt": ("prompt_task",),
    "sets": ("SetEffect", "redundant_pairs", "set_effect", "set_effects"),
    "sources": ("Replacement",),
    "heat": ("Trace", "trace"),
    "tracing": ("Noise", "causal_tracing"),
}
__getattr__ = attributes(__name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names})
