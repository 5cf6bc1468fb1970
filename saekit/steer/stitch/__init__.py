"""Affine maps between the residual streams of two models, which carry steering vectors and SAEs from one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.stitch.fit import End, fit_stitch, paired
    from saekit.steer.stitch.stitch import Affine, Stitch
    from saekit.steer.stitch.transfer import transfer_sae, transfer_vector

_HOMES = {
    "saekit.steer.stitch.fit": ("End", "fit_stitch", "paired"),
    "saekit.steer.stitch.stitch": ("Affine", "Stitch"),
    "saekit.steer.stitch.transfer": ("transfer_sae", "transfer_vector"),
}

__all__ = ["Affine", "End", "Stitch", "fit_stitch", "paired", "transfer_sae", "transfer_vector"]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
