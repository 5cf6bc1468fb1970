"""Interventions on disk: one JSON file, or one safetensors file with the JSON in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saekit.errors import InterventionError
from saekit.files import write_whole
from saekit.json_files import parse_json, read_json
from saekit.tensor_files import MAX_BYTES, SUFFIX, read_tensors, write_tensors


def write(to_dict: Callable[[dict[str, Tensor] | None], dict[str, Any]], path: Path) -> None:
    """Write a file whole or not at all.

    Args:
        to_dict: given a dictionary or None, returns JSON values, and puts vectors into the dictionary where there is one.

    Raises:
        InterventionError: the values have something that JSON cannot hold.
        StorageFull: there is no room for the file.
    """
    if path.suffix == SUFFIX:
        tensors: dict[str, Tensor] = {}
        header = _json(to_dict(tensors), path, tensors)  # fills `tensors`
        write_tensors(path, tensors, header)
    else:
        write_whole(path, (_json(to_dict(None), path, {}, indent=1) + "\n").encode())


def _json(values: dict[str, Any], path: Path, tensors: Mapping[str, Tensor], indent: int | None = None) -> str:
    """The values as JSON, with a checksum of them and of the tensors."""
    try:
        values = {**values, "sha256": _checksum(json.loads(json.dumps(values, allow_nan=False)), tensors)}
        content = json.dumps(values, indent=indent, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InterventionError(
            f"The intervention cannot be written to {path}: {error}.", "Keep to JSON values in its notes."
        ) from error
    parse_json(content, where=f"The intervention for {path}", error=InterventionError)  # what could not be read is not written
    return content


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """JSON values and tensors of a file.

    Raises:
        InterventionError: there is no such file, it is neither JSON nor safetensors with our header, or it was changed after it
            was written. Files of earlier versions have no checksum.
    """
    settings: dict[str, Any] = {"error": InterventionError, "hint": "Choose a file that saekit saved an intervention to."}
    values, tensors = (
        read_tensors(path, "an intervention", **settings)
        if path.suffix == SUFFIX
        else (read_json(path, max_bytes=MAX_BYTES, **settings), {})
    )
    if isinstance(values, dict) and "sha256" in values:
        written = values.pop("sha256")
        if written != _checksum(values, tensors):
            raise InterventionError(
                f"{path} was changed after it was written: its checksum differs.",
                "Make the intervention again; or take the line sha256 out, if the change is yours.",
            )
    return values, tensors


def _checksum(values: Any, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of JSON values and tensors."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
