"""Methods that locate the objects behind a behaviour. Each returns a :class:`saekit.tasks.Ranking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.agreement import consensus
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
    from saekit.locate.data import DataChoice, data_of
    from saekit.locate.methods import rank
    from saekit.locate.registry import METHODS, Method

__all__ = [
    "METHODS",
    "DataChoice",
    "Method",
    "ablation",
    "attention_knockout",
    "causal_tracing",
    "consensus",
    "data_of",
    "exhaustive_ablation",
    "heads",
    "patching",
    "path_patching",
    "rank",
    "set_effect",
    "trace",
]

_OTHERS = {
    "consensus": "agreement",
    "DataChoice": "data",
    "data_of": "data",
    "rank": "methods",
    "METHODS": "registry",
    "Method": "registry",
}
__getattr__ = attributes(__name__, {name: f"{__name__}.{_OTHERS.get(name, 'causal')}" for name in __all__})
