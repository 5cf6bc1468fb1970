"""The examples of a feature, and their encoding as one blob."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.errors import damaged

TOP = 0
"""Bucket of the strongest examples; buckets 1 to 10 are the tenths of a feature's activations, weakest first."""
MAX_BYTES = 64 << 20
"""Examples of one feature, unpacked."""
_VERSION = 1
_HEADER = struct.Struct("<BHBf")  # version, examples, bytes a token, largest activation
_STEPS = 65535


@dataclass(frozen=True)
class Window:
    """The tokens around a peak, and the feature's activation at each."""

    bucket: int
    row: int
    """Row of the peak in the store."""
    document: int
    position: int
    """Position of the peak in its context."""
    peak: int
    """Index of the peak in `token_ids`."""
    token_ids: NDArray[np.int64]
    values: NDArray[np.float32]


class Columns(NamedTuple):
    """The examples of one feature: one entry for each in all but the last two, which hold their tokens one after the other."""

    bucket: NDArray[np.integer]
    row: NDArray[np.integer]
    document: NDArray[np.integer]
    position: NDArray[np.integer]
    peak: NDArray[np.integer]
    length: NDArray[np.integer]
    tokens: NDArray[np.integer]
    values: NDArray[np.floating]

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Columns:
        """The columns of examples."""
        pointers = [(w.bucket, w.row, w.document, w.position, w.peak, len(w.token_ids)) for w in windows]
        tokens = np.concatenate([np.zeros(0, np.int64), *(w.token_ids for w in windows)])
        values = np.concatenate([np.zeros(0, np.float32), *(w.values for w in windows)])
        bucket, row, document, position, peak, length = np.array(pointers, np.int64).reshape(-1, 6).T
        return cls(bucket, row, document, position, peak, length, tokens, values)

    def windows(self) -> list[Window]:
        """The examples one by one."""
        ends = np.cumsum(self.length, dtype=np.int64).tolist()
        return [
            Window(bucket, row, document, position, peak, self.tokens[a:b].astype(np.int64), self.values[a:b].astype(np.float32))
            for bucket, row, document, position, peak, a, b in zip(*(column.tolist() for column in self[:5]), [0, *ends], ends)
        ]


def pack(examples: Columns | Sequence[Window]) -> bytes:
    """Encode examples as one compressed blob.

    It holds columns of pointers, all token ids, one bit per token that fires, and the activations of these tokens in units of
    1/65535 of the largest.
    """
    c = examples if isinstance(examples, Columns) else Columns.of(examples)
    width = 2 if not len(c.tokens) or c.tokens.max() < 1 << 16 else 4
    fires = c.values > 0
    firing = c.values[fires].astype(np.float64)
    scale = float(firing.max(initial=0.0))
    columns = [
        c.row.astype("<i8"),
        c.document.astype("<i8"),
        c.position.astype("<i4"),
        c.bucket.astype("<u1"),
        c.peak.astype("<u2"),
        c.length.astype("<u2"),
        c.tokens.astype(f"<u{width}"),
        np.packbits(fires),
        np.maximum(np.rint(firing / (scale or 1) * _STEPS), 1).astype("<u2"),
    ]
    return zlib.compress(_HEADER.pack(_VERSION, len(c.row), width, scale) + b"".join([each.tobytes() for each in columns]), 6)


def unpack(blob: bytes) -> list[Window]:
    """Decode what :func:`pack` encoded.

    Raises:
        DatabaseError: the blob is damaged.
    """
    try:
        data = _inflated(blob)
        version, n, width, scale = _HEADER.unpack_from(data)
        at = _HEADER.size
        if version != _VERSION or width not in (2, 4):
            raise ValueError(f"unknown format {version} with {width} bytes a token")

        def column(dtype: str, count: int) -> NDArray[Any]:
            nonlocal at
            values = np.frombuffer(data, dtype, count, at)
            at += values.nbytes
            return values

        pointers = [column("<i8", n), column("<i8", n), column("<i4", n), column("<u1", n), column("<u2", n)]
        lengths = column("<u2", n)
        if bool((pointers[4] >= lengths).any()):
            raise ValueError("a peak outside of its example")
        total = int(lengths.sum(dtype=np.int64))
        tokens = column(f"<u{width}", total).astype(np.int64)
        fires = np.unpackbits(column("<u1", (total + 7) // 8))[:total].astype(bool)
        values = np.zeros(total, np.float32)
        values[fires] = column("<u2", int(fires.sum())) * (scale / _STEPS)
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes too many")
    except (zlib.error, struct.error, ValueError) as error:
        raise damaged("the examples of a feature", error) from error
    row, document, position, bucket, peak = pointers
    return Columns(bucket, row, document, position, peak, lengths, tokens, values).windows()


def _inflated(blob: bytes) -> bytes:
    """Decompress a blob, but no more than MAX_BYTES of it."""
    decompress = zlib.decompressobj()
    data = decompress.decompress(blob, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    if not decompress.eof or decompress.unused_data:
        raise ValueError("the blob is cut or too long")
    return data
