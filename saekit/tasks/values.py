"""Reading and writing the JSON form of tasks, contrasts, labelled texts, metrics and rankings."""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.files import write_whole
from saekit.json_files import read_json

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
_LARGEST = 1 << 30
"""Bytes of the largest file: scores of a hundred thousand features on hundreds of prompts."""
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def save(path: str | Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    Raises:
        ConfigError: a value is nothing that JSON can hold.
        StorageFull, Unwritable: the file cannot be written.
    """
    content = {"format": f"saekit-{kind}", "version": VERSION, **values}
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The {kind} cannot be written to {path}: {error}.", "Keep to JSON values.") from error
    write_whole(Path(path), (text + "\n").encode())


def load(path: str | Path, kind: str, keys: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """The values that :func:`save` wrote: all of `keys`, and some of `optional`.

    Raises:
        ConfigError: there is no such file, or it does not hold an object of this kind.
    """
    hint = f"Choose a file that a {kind} was saved to."
    content = read_json(Path(path), error=ConfigError, hint=hint, max_bytes=_LARGEST)
    if content.get("format") != f"saekit-{kind}" or type(content.get("version")) is not int:
        raise ConfigError(f"{path} does not hold a {kind}.", f'It lacks "format": "saekit-{kind}".')
    if content["version"] != VERSION:
        raise ConfigError(f"{path} has version {content['version']}; this saekit reads {VERSION}.", "Update saekit.")
    del content["format"], content["version"]
    if wrong_keys := (content.keys() - set(optional)) ^ set(keys):
        wrong = ", ".join(sorted(wrong_keys))
        raise ConfigError(f"{path} lacks, or does not know, the values {wrong:.200}.", f"Known: {', '.join(sorted(keys))}.")
    return content


def texts(values: Any, what: str) -> tuple[str, ...]:
    """A list of texts as a tuple.

    Raises:
        ConfigError: it is one text, or something else.
    """
    # A single text is a sequence, too: of its characters.
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"The {what} are {values!r:.80}, not a list of texts.")
    return tuple(values)


def integers(values: Any, what: str) -> tuple[int, ...]:
    """A list of integers from 0 as a tuple.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"The {what} are {values!r:.80}, not a list of integers.")
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 for value in values):
        raise ConfigError(f"The {what} are {values!r:.80}, not a list of integers from 0.")
    return tuple(values)


def rows(values: Any, what: str) -> tuple[tuple[int, ...], ...]:
    """Rows of token ids as a tuple of tuples.

    Raises:
        ConfigError: they are something else.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"The {what} are {values!r:.80}, not rows of token ids.")
    return tuple(integers(row, f"token ids of the {what}") for row in values)


def pack_number(value: float) -> float | str:
    """A number as a JSON value; JSON has no NaN and no infinity, so these become text."""
    return value if math.isfinite(value) else str(value)


def unpack_number(value: Any, what: str) -> float:
    """The number that :func:`pack_number` was called on.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, str) and value in _NONFINITE:
        return _NONFINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"The {what} is {value!r:.80}, not a number.")
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"The {what} is too large a number.") from error


def pack_array(array: Tensor) -> dict[str, Any]:
    """A float tensor as JSON values: its shape, its dtype, and its little-endian bytes, compressed, in base64."""
    import torch

    dtype = "float64" if array.dtype == torch.float64 else "float32"
    numbers = array.detach().cpu().to(getattr(torch, dtype)).contiguous().numpy()
    packed = zlib.compress(numbers.astype("<f8" if dtype == "float64" else "<f4").tobytes())
    return {"shape": list(array.shape), "dtype": dtype, "zlib_base64": base64.b64encode(packed).decode()}


def unpack_array(value: Any, what: str) -> Tensor:
    """The tensor that :func:`pack_array` was called on.

    Raises:
        ConfigError: it is something else.
    """
    import numpy as np
    import torch

    match value:
        case {"shape": [*shape], "dtype": ("float32" | "float64") as dtype, "zlib_base64": str(text)} if len(value) == 3:
            count = math.prod(integers(shape, f"shape of the {what}"))
            width = 8 if dtype == "float64" else 4
            try:
                unpacker = zlib.decompressobj()
                found = unpacker.decompress(base64.b64decode(text, validate=True), count * width + 1)
            except (binascii.Error, zlib.error, ValueError, OverflowError, MemoryError) as error:
                raise ConfigError(f"The {what} are damaged: {error}.", "Make the file again.") from error
            if len(found) == count * width:
                return torch.from_numpy(np.frombuffer(found, f"<f{width}").astype(f"f{width}").reshape(shape))
    raise ConfigError(f"The {what} are {value!r:.80}, not a packed array.", "Make the file again.")


def same_array(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors have the same shape and numbers; NaN equals NaN."""
    import torch

    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(
        torch.allclose(one.double().cpu(), other.double().cpu(), rtol=0, atol=0, equal_nan=True)
    )
