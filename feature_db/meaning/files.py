"""The file of a profile: a safetensors file that readers map into memory, so that opening it costs nothing."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.meaning.profile import Profile
from saekit import files
from saekit.errors import DatabaseError

SUFFIX = ".words.safetensors"
_DTYPES = {"I64": "<i8", "I32": "<i4", "F32": "<f4", "F16": "<f2"}
HINT = "Run `saekit index`, which writes the file again."


def path_of(vectors: Path) -> Path:
    """The file of the profile that belongs to a file of decoder directions."""
    return vectors.with_name(vectors.name.removesuffix(".npy") + SUFFIX)


def write(path: Path, profile: Profile, embedder: str) -> None:
    """Write a profile.

    Args:
        embedder: name of the embedder that made its vectors.

    Raises:
        StorageFull, WorkspaceError: the file cannot be written; the one before is kept.
    """
    files.write_whole(path, encoded(profile, embedder))


def encoded(profile: Profile, embedder: str) -> bytes:
    """The bytes of the file: equal profiles give equal bytes."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in profile.arrays().items()}
    return save(arrays, metadata={"embedder": embedder})


def mapped(path: Path, n_features: int) -> tuple[Profile, str]:
    """The profile in a file, memory-mapped, and the name of its embedder.

    Raises:
        DatabaseError: the file is missing or damaged, or holds another number of features.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks the header and the size of the file
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        arrays = {name: _map(path, 8 + size, facts) for name, facts in header.items() if name != "__metadata__"}
        profile = Profile(**{field.name: arrays[field.name] for field in fields(Profile)})
        embedder = str(header["__metadata__"]["embedder"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatabaseError(f"The words of features in {path} cannot be read: {error}.", HINT) from error
    if not _agrees(profile, n_features):
        raise DatabaseError(f"The words of features in {path} are not those of {n_features} features.", HINT)
    return profile, embedder


def _map(path: Path, start: int, facts: dict[str, Any]) -> NDArray[Any]:
    shape = tuple(facts["shape"])
    dtype = np.dtype(_DTYPES[facts["dtype"]])
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start + facts["data_offsets"][0], shape)


def _agrees(profile: Profile, n_features: int) -> bool:
    """Whether the arrays fit together, so that no index in them leads outside."""
    V, E, D = len(profile.term_V), len(profile.word_E), len(profile.mean_D)
    shapes = {
        "count_V": (V,), "vector_VD": (V, D), "begin_F": (n_features + 1,), "begin_V": (V + 1,), "share_E": (E,),
        "kept_F": (n_features,), "norm_F": (n_features,), "feature_E": (E,), "shared_E": (E,), "rate_E": (E,),
    }  # fmt: skip
    if any(getattr(profile, name).shape != shape for name, shape in shapes.items()):
        return False
    inside = (profile.word_E, V), (profile.feature_E, n_features)
    ordered = all(
        begin[0] == 0 and begin[-1] == E and (np.diff(begin) >= 0).all() for begin in (profile.begin_F, profile.begin_V)
    )
    return ordered and all(not E or (array.min() >= 0 and array.max() < n) for array, n in inside)
