"""Names and shapes of the tensors in files of other tools. Nothing here runs code of a file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekit.errors import SAEFormatError

_DAMAGED = "The file is damaged."
_MOST_HEADER = 1 << 26


def read_pickle(path: Path, shown: str) -> dict[str, Any]:
    """The content of a file of `torch.save`, memory-mapped where its format allows it.

    Such a file is a pickle. It is read with `weights_only=True`, which takes tensors and plain data and runs no code.

    Raises:
        SAEFormatError: it holds anything else, is no dict, or is damaged.
    """
    import pickle

    import torch

    def load(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            found = load(True)
        except RuntimeError:  # the format from before torch 1.6 cannot be mapped
            found = load(False)
    except pickle.UnpicklingError as error:
        raise SAEFormatError(
            f"{shown} is a pickle that holds more than tensors and plain data, so loading it could run code.",
            "Ask its author for safetensors, or convert it where you trust the file.",
        ) from error
    except Exception as error:  # an unpickler on unchecked bytes
        raise SAEFormatError(f"{shown} is no file of torch: {type(error).__name__}: {str(error)[:200]}.", _DAMAGED) from error
    if not isinstance(found, Mapping):
        raise SAEFormatError(f"{shown} holds a {type(found).__name__}, not named tensors.", "Save the state dict of the SAE.")
    return dict(found)


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes by name, from the header of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MOST_HEADER:
            raise SAEFormatError(f"{path} declares a header of {size:,} bytes.", _DAMAGED)
        header = json.loads(file.read(size))
    return {name: facts["shape"] for name, facts in header.items() if name != "__metadata__"}


def npz_shapes(path: Path, shown: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from the headers of an npz file.

    Raises:
        SAEFormatError: it is no npz file, or holds objects instead of numbers.
    """
    from numpy.lib import format as npy

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(file)
                if dtype.hasobject:
                    raise SAEFormatError(f"{name} in {shown} holds objects, so loading it could run code.", "Save plain arrays.")
                shapes[name.removesuffix(".npy")] = tuple(shape)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise SAEFormatError(f"{shown} holds no readable params.npz: {str(error)[:200]}.", _DAMAGED) from error
    return shapes
