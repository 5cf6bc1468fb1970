"""Files of tensors with facts: safetensors whose header holds a JSON object, so that both exist together or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import SaekitError
from saekit.files import write_whole
from saekit.json_files import parse_json, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
MAX_BYTES = 1 << 32
_KEY = "saekit"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: str, *, checksum: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file.
        tensors: contiguous tensors by name.
        facts: a JSON document.
        checksum: as for :func:`saekit.files.whole`.

    Raises:
        StorageFull: there is no room for the file.
        Unwritable: `path` cannot be written.
    """
    from safetensors.torch import save

    write_whole(path, save(dict(tensors), {_KEY: facts}), checksum=checksum)


def read_tensors(
    path: Path, what: str, *, error: type[SaekitError], hint: str, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON object and the tensors of a file that :func:`write_tensors` wrote.

    Args:
        path: the file.
        what: what the file should hold, for the message: "an intervention".
        error: type of the error raised.
        hint: what to do about it.
        max_bytes: larger files are not read.

    Raises:
        error: there is no such file, or it is no safetensors file with a JSON object of saekit in its header.
    """
    from safetensors.torch import load

    content = read_bytes(path, error=error, hint=hint, max_bytes=max_bytes)
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"][_KEY]
        tensors = load(content)
    except Exception as fault:  # safetensors raises a type of its own
        raise error(f"{path} does not hold {what}: {type(fault).__name__}: {fault}.", hint) from fault
    return parse_json(header, where=str(path), error=error, hint=hint), tensors
