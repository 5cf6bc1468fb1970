"""Gradient methods: how the metric changes with each object, to first order or along a path.

Each method is a function `(lm, data, *, spaces=None, metric=None, positions=None, ..., progress=True) -> Ranking`. `positions` is
None for one score of each object, summed over all tokens; "each" for one at every position; "last", the name of a span of the
task, or a list of positions from 0 for scores at these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.gradient.integrated import conductance, integrated_gradients
    from saekit.locate.gradient.patching import attribution_patching
    from saekit.locate.gradient.plain import gradient_norm, gradient_x_activation
    from saekit.locate.gradient.star import atp_star
    from saekit.locate.gradient.tokens import token_attribution
    from saekit.locate.gradient.weights import parameter_saliency, weight_saliency

_HOMES = {
    "atp_star": "star",
    "attribution_patching": "patching",
    "conductance": "integrated",
    "gradient_norm": "plain",
    "gradient_x_activation": "plain",
    "integrated_gradients": "integrated",
    "parameter_saliency": "weights",
    "token_attribution": "tokens",
    "weight_saliency": "weights",
}
__all__ = [
    "atp_star",
    "attribution_patching",
    "conductance",
    "gradient_norm",
    "gradient_x_activation",
    "integrated_gradients",
    "parameter_saliency",
    "token_attribution",
    "weight_saliency",
]

__getattr__ = attributes(__name__, {name: f"{__name__}.{module}" for name, module in _HOMES.items()})
