"""Shards of latents that delphi cached: safetensors files that are read a few sequences at a time."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.store.schema import FEATURES_PER_SAE
from saekit.errors import ExchangeError, shown_path

_NAME = re.compile(r"(\d{1,8})_(\d{1,8})\.safetensors")
_TYPES = {
    "locations": {"U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"},
    "activations": {"F16": "<f2", "F32": "<f4"},
    "tokens": {"U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"},
}
_FETCH = "Fetch the file again, or run delphi's cache again."
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Shard:
    """A file with the activations of latents `first` to `last`."""

    path: Path
    first: int
    last: int

    def tokens(self, vocab_size: int) -> NDArray[np.int64]:
        """(sequences, context) token ids.

        Raises:
            ExchangeError: the file has none, or ids that the model does not have.
        """
        found = self._arrays.get("tokens")
        if found is None or found.ndim != 2 or not found.size:
            raise ExchangeError(f"{shown_path(self.path)} holds no tokens.", "Run delphi's cache with its tokens saved.")
        if int(found.min()) < 0 or int(found.max()) >= vocab_size:
            what = f"{shown_path(self.path)} holds token ids that the model does not have."
            raise ExchangeError(what, "Give the model of the latents.")
        return found

    def entries(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(n, 3) locations and (n,) activations of the sequences `first` to `last - 1`."""
        order, sequence = self._order
        start, stop = np.searchsorted(sequence, [first, last])
        chosen = slice(start, stop) if order is None else np.sort(order[start:stop])
        return self._locations[chosen].astype(np.int64), self._arrays["activations"][chosen].astype(np.float32)

    def outside(self, sequences: int) -> int:
        """Number of entries that are of none of the sequences `0` to `sequences - 1`."""
        start, stop = np.searchsorted(self._order[1], [0, sequences])
        return len(self._locations) - int(stop - start)

    def digest(self) -> str:
        """What tells the file from others of its name."""
        total = float(self._arrays["activations"][:_CHUNK].astype(np.float64).sum())
        return f"{self.path.name} {self.path.stat().st_size} {len(self._locations)} {total}"

    @property
    def _locations(self) -> NDArray[Any]:
        return self._arrays["locations"]

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64] | None, NDArray[Any]]:
        """Order of the entries by sequence (None where they are in order), and their sequences in this order."""
        sequence = self._locations[:, 0]
        parts = (sequence[i : i + _CHUNK + 1].astype(np.int64) for i in range(0, len(sequence), _CHUNK))
        ordered = all((np.diff(part) >= 0).all() for part in parts)
        if ordered:
            return None, sequence
        order = np.argsort(sequence, kind="stable")
        return order, np.asarray(sequence)[order]

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the file, memory-mapped.

        Raises:
            ExchangeError: the file is damaged, or holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy"):  # checks the header and the size of the file
                pass
            with self.path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            found = {name: _mapped(self.path, 8 + size, facts, _TYPES[name]) for name, facts in header.items() if name in _TYPES}
            n = len(found["activations"])
            if found["locations"].shape != (n, 3) or found["activations"].ndim != 1:
                raise ValueError("locations and activations do not agree")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ExchangeError(f"{shown_path(self.path)} cannot be read: {error}.", _FETCH) from error
        return found


def shards(folder: Path) -> list[Shard]:
    """The shards of a hookpoint, by their first latent.

    Raises:
        ExchangeError: their ranges overlap or have gaps.
    """
    matches = [(match, path) for path in folder.glob("*.safetensors") if (match := _NAME.fullmatch(path.name))]
    found = sorted((Shard(path, int(match[1]), int(match[2])) for match, path in matches), key=lambda shard: shard.first)
    ends = [-1, *(shard.last for shard in found)]
    if not found or any(shard.first != end + 1 or shard.last < shard.first for shard, end in zip(found, ends)):
        raise ExchangeError(f"The shards in {shown_path(folder)} overlap or have gaps.", "Give all files of the cache.")
    if found[-1].last >= FEATURES_PER_SAE:
        raise ExchangeError(f"{shown_path(found[-1].path)} names more latents than a dictionary can have.", _FETCH)
    if any(path.is_symlink() for _, path in matches):
        raise ExchangeError(f"{shown_path(folder)} holds links.", "Put ordinary files in their place.")
    return found


def _mapped(path: Path, start: int, facts: dict[str, Any], types: dict[str, str]) -> NDArray[Any]:
    shape, dtype = tuple(facts["shape"]), np.dtype(types[facts["dtype"]])
    return np.zeros(shape, dtype) if 0 in shape else np.memmap(path, dtype, "r", start + facts["data_offsets"][0], shape)
