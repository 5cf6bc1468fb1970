"""The direct effect of features on the logits of all tokens, as histograms."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feature_db.errors import damaged
from feature_db.records import Histogram

if TYPE_CHECKING:
    from torch import Tensor

BINS = 50
_HEADER = struct.Struct("<Bff")  # bytes of a count, lowest and highest logit


def histograms(chunks: Iterable[Tensor]) -> list[bytes]:
    """Pack a histogram of the logits of each row: BINS bins of equal width from the smallest logit to the largest.

    Args:
        chunks: logits (n, V) of n features each, from :func:`feature_db.index.projection.logit_effects`.
    """
    import torch

    packed = []
    with torch.no_grad():
        for logits_nV in chunks:
            low_n, high_n = logits_nV.aminmax(dim=1)
            width_n = (high_n - low_n).clamp_min(1e-12)
            bin_nV = ((logits_nV - low_n[:, None]) / width_n[:, None] * BINS).long().clamp_(0, BINS - 1)
            counts_nB = torch.zeros(len(logits_nV), BINS, dtype=torch.long, device=logits_nV.device)
            counts_nB.scatter_add_(1, bin_nV, torch.ones_like(bin_nV))
            packed += [pack(*row) for row in zip(low_n.tolist(), high_n.tolist(), counts_nB.cpu().numpy())]
    return packed


def pack(low: float, high: float, counts: NDArray[np.integer]) -> bytes:
    """Encode a histogram with bins of equal width."""
    width = 2 if int(counts.max(initial=0)) < 1 << 16 else 4
    return _HEADER.pack(width, low, high) + counts.astype(f"<u{width}").tobytes()


def unpack(blob: bytes) -> Histogram:
    """Decode what :func:`pack` encoded.

    Raises:
        DatabaseError: the blob is damaged.
    """
    try:
        width, low, high = _HEADER.unpack_from(blob)
        if width not in (2, 4) or not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{width} bytes a count, from {low} to {high}")
        counts = np.frombuffer(blob, f"<u{width}", offset=_HEADER.size)
    except (struct.error, ValueError) as error:
        raise damaged("the logit histogram of a feature", error) from error
    return Histogram(np.linspace(low, high, len(counts) + 1).tolist(), counts.tolist())
