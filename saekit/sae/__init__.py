"""Sparse dictionaries: SAEs and transcoders, encoded, decoded, loaded and saved in sae-lens's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.sae.code import SparseCode
    from saekit.sae.config import SAEConfig
    from saekit.sae.cross import CrossCoder
    from saekit.sae.files import load_sparsity
    from saekit.sae.modules import SAE
    from saekit.sae.origin import Origin
    from saekit.sae.registry import ARCHITECTURES
    from saekit.sae.sources import Loaded, load_from

__all__ = ["ARCHITECTURES", "SAE", "CrossCoder", "Loaded", "Origin", "SAEConfig", "SparseCode", "load_from", "load_sparsity"]

# Loaded when first used: training settings read the table of architectures, and must not wait for torch.
__getattr__ = attributes(
    __name__,
    {
        "ARCHITECTURES": "saekit.sae.registry",
        "SAE": "saekit.sae.modules",
        "CrossCoder": "saekit.sae.cross",
        "Origin": "saekit.sae.origin",
        "SAEConfig": "saekit.sae.config",
        "SparseCode": "saekit.sae.code",
        "load_sparsity": "saekit.sae.files",
        "Loaded": "saekit.sae.sources",
        "load_from": "saekit.sae.sources",
    },
)
