"""Steering vectors: directions with their facts, ways to fit them from a contrast, algebra, and projections of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.vectors.data import FitData
    from saekit.steer.vectors.features import SAEParts, sae_parts
    from saekit.steer.vectors.monitor import projections
    from saekit.steer.vectors.registry import FITS, Fit, fit_vector
    from saekit.steer.vectors.vector import SteeringVector

_HOMES = {
    "saekit.steer.vectors.data": ("FitData",),
    "saekit.steer.vectors.features": ("SAEParts", "sae_parts"),
    "saekit.steer.vectors.monitor": ("projections",),
    "saekit.steer.vectors.registry": ("FITS", "Fit", "fit_vector"),
    "saekit.steer.vectors.vector": ("SteeringVector",),
}

__all__ = [
    "FITS",
    "Fit",
    "FitData",
    "SAEParts",
    "SteeringVector",
    "fit_vector",
    "projections",
    "sae_parts",
]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
