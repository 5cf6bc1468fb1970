"""Interventions on disk: one JSON file, or one safetensors file with the JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from saekit.errors import InterventionError
from saekit.files import write_whole

_SUFFIX = ".safetensors"
_KEY = "saekit"


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
        return json.dumps(values, indent=indent, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InterventionError(
            f"The intervention cannot be written to {path}: {error}.", "Keep to JSON values in its notes."
        ) from error


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """JSON values and tensors of a file.

    Raises:
        InterventionError: there is no such file, or it is neither JSON nor safetensors with our header.
    """
    try:
        if path.suffix != _SUFFIX:
            return _parsed(path.read_text(encoding="utf-8-sig")), {}  # some editors begin a file with a byte order mark
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            return _parsed(header[_KEY]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InterventionError(f"There is no file {path}.", "Save an intervention there first.") from error
    except Exception as error:  # safetensors raises a type of its own
        raise InterventionError(
            f"{path} does not hold an intervention: {type(error).__name__}: {error}.", "Choose a file that saekit saved."
        ) from error


def _parsed(content: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a JSON number")

    return json.loads(content, parse_constant=refuse)
