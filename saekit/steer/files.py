"""Interventions on disk: one JSON file, or one safetensors file with the JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from saekit.errors import InterventionError
from saekit.files import write_whole
from saekit.json_files import parse_json, read_bytes, read_json

_SUFFIX = ".safetensors"
_KEY = "saekit"
_MAX_BYTES = 1 << 32


def write(to_dict: Callable[[dict[str, Tensor] | None], dict[str, Any]], path: Path) -> None:
    """Write a file whole or not at all.

    Args:
        to_dict: given a dictionary or None, returns JSON values, and puts vectors into the dictionary where there is one.

    Raises:
        InterventionError: the values have something that JSON cannot hold.
        StorageFull: there is no room for the file.
    """
    if path.suffix == _SUFFIX:
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        header = _json(to_dict(tensors), path)  # fills `tensors`
        content = save(tensors, {_KEY: header})
    else:
        content = (_json(to_dict(None), path, indent=1) + "\n").encode()
    write_whole(path, content)


def _json(values: dict[str, Any], path: Path, indent: int | None = None) -> str:
    try:
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
        InterventionError: there is no such file, or it is neither JSON nor safetensors with our header.
    """
    settings: dict[str, Any] = {"error": InterventionError, "hint": "Choose a file that saekit saved an intervention to."}
    if path.suffix != _SUFFIX:
        return read_json(path, max_bytes=_MAX_BYTES, **settings), {}
    from safetensors.torch import load

    content = read_bytes(path, max_bytes=_MAX_BYTES, **settings)
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"][_KEY]
        tensors = load(content)
    except Exception as error:  # safetensors raises a type of its own
        what = f"{path} does not hold an intervention: {type(error).__name__}: {error}."
        raise InterventionError(what, settings["hint"]) from error
    return parse_json(header, where=str(path), **settings), tensors
