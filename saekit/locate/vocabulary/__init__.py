"""Projection to the vocabulary: lenses, what heads, neurons and features say in tokens, gradients as tokens, and patchscopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.locate.vocabulary.backward import backward_lens
    from saekit.locate.vocabulary.grid import TokenGrid
    from saekit.locate.vocabulary.heads import Copying, TokenPair, copying, ov_pairs, qk_pairs
    from saekit.locate.vocabulary.lens import LENSES, Lens, LensKind, fit_lens
    from saekit.locate.vocabulary.objects import neuron_keys, object_tokens
    from saekit.locate.vocabulary.patchscopes import IDENTITY, Inspected, Place, patchscope
    from saekit.locate.vocabulary.read import Accessibility, accessibility, read_lens
    from saekit.locate.vocabulary.tokens import Projection, RankedToken, project
    from saekit.locate.vocabulary.tuned import TunedSettings, lens_kl

__all__ = [
    "IDENTITY",
    "LENSES",
    "Accessibility",
    "Copying",
    "Inspected",
    "Lens",
    "LensKind",
    "Place",
    "Projection",
    "RankedToken",
    "TokenGrid",
    "TokenPair",
    "TunedSettings",
    "accessibility",
    "backward_lens",
    "copying",
    "fit_lens",
    "lens_kl",
    "neuron_keys",
    "object_tokens",
    "ov_pairs",
    "patchscope",
    "project",
    "qk_pairs",
    "read_lens",
]

_HOMES = {
    "backward": ["backward_lens"],
    "grid": ["TokenGrid"],
    "heads": ["Copying", "TokenPair", "copying", "ov_pairs", "qk_pairs"],
    "lens": ["LENSES", "Lens", "LensKind", "fit_lens"],
    "objects": ["neuron_keys", "object_tokens"],
    "patchscopes": ["IDENTITY", "Inspected", "Place", "patchscope"],
    "read": ["Accessibility", "accessibility", "read_lens"],
    "tokens": ["Projection", "RankedToken", "project"],
    "tuned": ["TunedSettings", "lens_kl"],
}
__getattr__ = attributes(__name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names})
