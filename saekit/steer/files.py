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
    """Write a file whole or not at all. `to_dict(tensors)` gives the JSON values, and fills `tensors` where it is not None.

    Raises:
        StorageFull: there is no room for it.
    """
    if path.suffix == _SUFFIX:
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        header = json.dumps(to_dict(tensors))  # fills `tensors`
        content = save(tensors, {_KEY: header})
    else:
        content = (json.dumps(to_dict(None), indent=1) + "\n").encode()
    write_whole(path, content)


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """JSON values and tensors of a file.

    Raises:
        InterventionError: there is no such file, or it is neither JSON nor safetensors with our header.
    """
    try:
        if path.suffix != _SUFFIX:
            return json.loads(path.read_text()), {}
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            return json.loads(header[_KEY]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InterventionError(f"There is no file {path}.", "Save an intervention there first.") from error
    except Exception as error:  # safetensors raises a type of its own
        raise InterventionError(f"{path} holds no intervention: {error!r}.", "Choose a file that saekit saved.") from error
