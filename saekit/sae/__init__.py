"""Sparse dictionaries: SAEs and transcoders, encoded, decoded, loaded and saved in sae-lens's layout."""

from __future__ import annotations

from saekit.sae.architectures import SAE
from saekit.sae.code import SparseCode
from saekit.sae.config import SAEConfig
from saekit.sae.cross import CrossCoder
from saekit.sae.files import load_sparsity
from saekit.sae.registry import ARCHITECTURES

__all__ = ["ARCHITECTURES", "SAE", "CrossCoder", "SAEConfig", "SparseCode", "load_sparsity"]
