"""Sparse dictionaries: SAEs and transcoders, encoded, decoded, loaded and saved in sae-lens's layout."""

from __future__ import annotations

from saekit.sae.architectures import SAE, SparseCode
from saekit.sae.config import ARCHITECTURES, SAEConfig
from saekit.sae.cross import CrossCoder
from saekit.sae.files import load_sparsity

__all__ = ["ARCHITECTURES", "SAE", "CrossCoder", "SAEConfig", "SparseCode", "load_sparsity"]
