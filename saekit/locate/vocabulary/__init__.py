"""Projection to the vocabulary: lenses, what heads, neurons and features say in tokens, gradients as tokens, and patchscopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.vocabulary.grid import TokenGrid
    from saekit.locate.vocabulary.lens import LENSES, Lens, LensKind, fit_lens
    from saekit.locate.vocabulary.read import Accessibility, accessibility, read_lens
    from saekit.locate.vocabulary.tuned import TunedSettings, lens_kl

__all__ = [
    "LENSES",
    "Accessibility",
    "Lens",
    "LensKind",
    "TokenGrid",
    "TunedSettings",
    "accessibility",
    "fit_lens",
    "lens_kl",
    "read_lens",
]

_HOMES = {
    **dict.fromkeys(["LENSES", "Lens", "LensKind", "fit_lens"], "lens"),
    **dict.fromkeys(["Accessibility", "accessibility", "read_lens"], "read"),
    **dict.fromkeys(["TunedSettings", "lens_kl"], "tuned"),
    "TokenGrid": "grid",
}
__getattr__ = attributes(__name__, {name: f"{__name__}.{module}" for name, module in _HOMES.items()})
