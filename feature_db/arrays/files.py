"""Files of arrays: safetensors files that readers map into memory, so that opening them costs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saekit import files
from saekit.errors import DatabaseError

_DTYPES = {"I64": "<i8", "F64": "<f8", "I32": "<i4", "U16": "<u2", "F32": "<f4", "F16": "<f2", "U8": "|u1"}
_TEXTS = "texts"
CHECKSUM = "sha256"
"""Name of the text that holds the checksum of all else in the file."""
_TOLERANCE = 1e-2
"""Largest difference, between processors, of what BLAS computes from vectors of length 1."""
HINT = "Run `saekit index`, which writes the file again."
Arrays = Mapping[str, NDArray[Any]]


def write(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Write arrays and texts, with a checksum of them. Equal contents give equal bytes.

    Raises:
        StorageFull, WorkspaceError: the file cannot be written; the one before is kept.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with files.temporary_folder(path.parent) as folder:
            # As one text: the library stores several in any order.
            facts = {_TEXTS: json.dumps(metadata | {CHECKSUM: _digest(arrays, metadata)}, sort_keys=True)}
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / path.name, facts)
            files.publish(folder / path.name, path)
            files.sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise files.unwritable(path, error) from error


def mapped(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a file, memory-mapped, and its texts.

    Raises:
        DatabaseError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks the header and the size of the file
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", {})
        metadata = {str(name): str(text) for name, text in (json.loads(metadata.get(_TEXTS, "{}")) or metadata).items()}
        return {name: _map(path, 8 + size, facts) for name, facts in header.items()}, metadata
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatabaseError(f"The arrays of features in {path} cannot be read: {error}.", HINT) from error


def intact(path: Path) -> bool:
    """Whether the content of a file matches its checksum; False where it has none.

    Raises:
        DatabaseError: the file is missing, or cannot be read.
    """
    arrays, texts = mapped(path)
    return texts.get(CHECKSUM) == _digest(arrays, texts)


def equal(path: Path, arrays: Arrays, metadata: dict[str, str], near: Collection[str] = ()) -> bool:
    """Whether a file holds exactly these arrays and texts, and in the arrays called `near` about these numbers.

    Raises:
        DatabaseError: the file is missing or damaged.
    """
    found, texts = mapped(path)
    if texts | {CHECKSUM: ""} != metadata | {CHECKSUM: ""} or found.keys() != arrays.keys():
        return False
    return all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and (_near(found[name], array) if name in near else bool((_bytes(found[name]) == _bytes(array)).all()))
        for name, array in arrays.items()
    )


def ascending(begin: NDArray[np.int64], n: int) -> bool:
    """Whether the numbers cut n entries into consecutive parts."""
    return len(begin) > 0 and begin[0] == 0 and begin[-1] == n and bool((np.diff(begin) >= 0).all())


def inside(array: NDArray[Any], n: int) -> bool:
    """Whether the numbers are from 0 to n - 1."""
    return not len(array) or bool(array.min() >= 0 and array.max() < n)


def _digest(arrays: Arrays, texts: dict[str, str]) -> str:
    """SHA-256 of arrays and texts."""
    facts = [{name: text for name, text in texts.items() if name != CHECKSUM}]
    facts += [{name: f"{arrays[name].dtype} {arrays[name].shape}"} for name in sorted(arrays)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(_bytes(arrays[name]).data)
    return digest.hexdigest()


def _near(found: NDArray[Any], array: NDArray[Any]) -> bool:
    return bool(np.allclose(found, array, rtol=_TOLERANCE, atol=_TOLERANCE))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _map(path: Path, start: int, facts: dict[str, Any]) -> NDArray[Any]:
    shape = tuple(facts["shape"])
    dtype = np.dtype(_DTYPES[facts["dtype"]])
    if 0 in shape:
        return np.zeros(shape, dtype)
    array = np.memmap(path, dtype, "r", start + facts["data_offsets"][0], shape)
    return array.view(np.ndarray)  # slices of a memmap take ten times as long
