"""The numba versions, for float32 on the CPU."""

from __future__ import annotations

from saekit.sae.kernels.reference import encode_topk, gather_decode, topk

__all__ = ["encode_topk", "gather_decode", "topk"]
