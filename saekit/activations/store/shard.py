"""The format of a shard: an HDF5 file with a row for every token."""

from __future__ import annotations

import io
from collections.abc import Mapping

import h5py
import numpy as np
import torch
from torch import Tensor

from saekit.errors import ConfigError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Columns of every shard in addition to the sites. `special`: tokens that are not trained on, see `Block.special_N`.
TOKEN_COLUMNS = {"tokens": np.int32, "position": np.int32, "document": np.int64, "special": np.bool_}
_CHUNK_BYTES = 2**20


def storage_dtype(name: str) -> torch.dtype:
    """The dtype called `name`.

    Raises:
        ConfigError: activations cannot be stored in this dtype.
    """
    if name not in DTYPES:
        raise ConfigError(f"Activations cannot be stored as {name!r}.", f"Choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def as_numpy(acts: Tensor) -> np.ndarray:
    """A numpy view of a CPU tensor. bfloat16, which numpy and HDF5 lack, becomes its bits as uint16."""
    return acts.view(torch.int16).numpy().view(np.uint16) if acts.dtype == torch.bfloat16 else acts.numpy()


def as_tensor(stored: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The tensor of what :func:`as_numpy` gave."""
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16) if dtype == torch.bfloat16 else torch.from_numpy(stored)


def column_problem(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Say why the dataset `name` of a shard must not be read; "" where it is as :class:`ShardBuilder` writes it.

    A shard may come from somebody else. Links, external and virtual datasets would read other files of the user, filters could
    expand a few bytes to any size, and HDF5 allocates whole chunks.
    """
    *groups, last = name.split("/")
    place: h5py.Group = file
    for part in (*groups, last):
        link = place.get(part, getlink=True)
        if link is None:
            return "is missing"
        if not isinstance(link, h5py.HardLink):
            return "is a link"
        place = place[part]
    dataset = place
    if not isinstance(dataset, h5py.Dataset):
        return "is not a dataset"
    if dataset.shape != shape or dataset.dtype != dtype:
        return f"is {dataset.shape} {dataset.dtype}, not {shape} {dtype}"
    properties = dataset.id.get_create_plist()
    if dataset.external or dataset.is_virtual or properties.get_nfilters():
        return "is not stored plainly in the file"
    row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
    if dataset.chunks is not None and int(np.prod(dataset.chunks)) * dtype.itemsize > max(2 * _CHUNK_BYTES, row_bytes):
        return f"has chunks of {dataset.chunks} numbers"
    return ""


class ShardBuilder:
    """An HDF5 file in memory to which rows are appended.

    The file is in memory because HDF5 does not recover from a full disk, and because it is hashed and written at once. The same
    rows give the same bytes, whatever batches they came in.
    """

    def __init__(self, bfloat16: bool) -> None:
        self.n_tokens = 0
        self._bfloat16 = bfloat16
        self._buffer = io.BytesIO()
        self._file = h5py.File(self._buffer, "w")
        self._columns: dict[str, _Column] = {}

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows: `sites/<site>` (N, width) and the :data:`TOKEN_COLUMNS` (N,)."""
        for name, rows in columns.items():
            if name not in self._columns:
                self._columns[name] = _Column(self._file, name, rows)
            self._columns[name].append(rows)
        self.n_tokens += len(columns["tokens"])

    def finish(self) -> memoryview:
        """Finish the file and return its bytes."""
        for name, column in self._columns.items():
            dataset = column.finish()
            if name.startswith("sites/"):
                dataset.attrs["dtype"] = "bfloat16" if self._bfloat16 else str(dataset.dtype)
        self._file.close()
        return self._buffer.getbuffer()


class _Column:
    """A dataset that grows by whole chunks, written directly without the cache and the conversions of HDF5."""

    def __init__(self, file: h5py.File, name: str, like: np.ndarray) -> None:
        row_bytes = like.itemsize * int(np.prod(like.shape[1:]))
        # A power of two, so that the chunks of all columns and the pieces that are read begin at the same rows.
        self._rows = 2 ** int(np.log2(max(1, _CHUNK_BYTES // row_bytes)))
        self._chunk = np.zeros((self._rows, *like.shape[1:]), like.dtype)
        self._filled = self._written = 0
        self._file, self._name = file, name
        self._dataset: h5py.Dataset | None = None

    def append(self, rows: np.ndarray) -> None:
        while len(rows):
            size = min(self._rows - self._filled, len(rows))
            if size == self._rows:  # a whole chunk needs no copy
                self._write(np.ascontiguousarray(rows[:size]), size)
            else:
                self._chunk[self._filled : self._filled + size] = rows[:size]
                self._filled += size
                if self._filled == self._rows:
                    self._write(self._chunk, self._rows)
                    self._filled = 0
            rows = rows[size:]

    def finish(self) -> h5py.Dataset:
        if self._dataset is None:  # less than one chunk
            data = self._chunk[: self._filled]
            return self._file.create_dataset(self._name, data=data, chunks=data.shape, maxshape=(None, *data.shape[1:]))
        if self._filled:
            self._chunk[self._filled :] = 0
            self._write(self._chunk, self._filled)
        return self._dataset

    def _write(self, chunk: np.ndarray, valid: int) -> None:
        shape = chunk.shape
        if self._dataset is None:
            self._dataset = self._file.create_dataset(
                self._name, (0, *shape[1:]), chunk.dtype, chunks=shape, maxshape=(None, *shape[1:])
            )
        self._dataset.resize(self._written + valid, axis=0)
        self._dataset.id.write_direct_chunk((self._written, *(0 for _ in shape[1:])), chunk)
        self._written += valid
