"""The file of a dictionary's decoder directions: written by a build, memory-mapped by readers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from feature_db.records import IndexedSAE, StoredFile
from feature_db.store.checksums import file_sha256
from saekit import files
from saekit.errors import DatabaseError

_HINT = "Run `saekit index`, which writes the file again."
_LARGEST_HEADER = 4096


def write(path: Path, vectors_FE: NDArray[np.float32]) -> StoredFile:
    """Write the directions (F, d_out); returns what identifies the file.

    Raises:
        StorageFull, WorkspaceError: the file cannot be written; the one before is kept.
    """
    with files.whole(path) as file:
        np.save(file, vectors_FE)
    return StoredFile(file_sha256(path), path.stat().st_size, None)


def mapped(sae: IndexedSAE) -> NDArray[np.float32]:
    """The directions, (n_features, d_out), memory-mapped.

    Raises:
        DatabaseError: the file is missing or damaged, or has another shape than the dictionary.
    """
    shape = (sae.n_features, sae.d_out)
    try:
        with sae.vectors.open("rb") as file:
            start = file.read(_LARGEST_HEADER)
        size = sae.vectors.stat().st_size
    except OSError as error:
        raise _damaged(sae, error.strerror or error) from error
    offset = _offset(sae, start, shape)
    if size != offset + 4 * shape[0] * shape[1]:
        raise _damaged(sae, f"{size} bytes for {shape[0]} directions of {shape[1]} numbers")
    return np.memmap(sae.vectors, np.dtype("<f4"), "r", offset, shape)


def check(sae: IndexedSAE, stored: StoredFile | None) -> list[str]:
    """Check every byte of the file; returns what could not be checked.

    Raises:
        DatabaseError: the file is missing or damaged.
    """
    mapped(sae)
    if stored is None:
        return [f"{sae.vectors.name} was made before checksums were recorded: index again to have them (labels are kept)."]
    if file_sha256(sae.vectors) != stored.sha256:
        raise _damaged(sae, "its bytes do not match their checksum")
    return []


def _offset(sae: IndexedSAE, start: bytes, shape: tuple[int, int]) -> int:
    """Bytes of the header, which must describe a float32 array of `shape`."""
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        found, fortran, dtype = read(file, max_header_size=_LARGEST_HEADER)
    # NumPy parses the header with Python's own parser, which raises many kinds of errors.
    except Exception as error:
        raise _damaged(sae, f"its header does not parse ({error})") from error
    if (found, fortran, dtype) != (shape, False, np.dtype("<f4")):
        raise _damaged(sae, f"it holds {dtype} {found} where float32 {shape} belongs")
    return file.tell()


def _damaged(sae: IndexedSAE, cause: object) -> DatabaseError:
    return DatabaseError(f"The decoder directions of {sae.dictionary} ({sae.vectors}) are damaged: {cause}.", _HINT)
