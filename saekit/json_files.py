"""Reading JSON that somebody else may have written or damaged: every fault becomes a typed error that names the file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from saekit.errors import SaekitError, WorkspaceError

MAX_BYTES = 2**26
_MAX_DEPTH = 64
_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


def read_json(
    path: Path,
    kind: type[Any] = dict,
    *,
    error: type[SaekitError] = WorkspaceError,
    hint: str | None = None,
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path: the file. Check first that it exists where a missing file means something else than damage.
        kind: what the outermost value must be.
        error: type of the error raised.
        hint: what to do about it.
        max_bytes: size of the largest file accepted; larger files are not read.
        finite: whether NaN and infinities are refused.

    Raises:
        error: there is no such file, it cannot be read, or :func:`parse_json` refuses its content.
    """
    data = read_bytes(path, error=error, hint=hint, max_bytes=max_bytes)
    return parse_json(data, kind, where=str(path), error=error, hint=hint, finite=finite)


def read_bytes(
    path: Path, *, error: type[SaekitError] = WorkspaceError, hint: str | None = None, max_bytes: int = MAX_BYTES
) -> bytes:
    """The content of an ordinary file that somebody else may have made; arguments as for :func:`read_json`.

    Raises:
        error: there is no such file, it is a folder or a device, it is too large, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a named pipe does not wait
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path} is not a file.", hint)
            if status.st_size > max_bytes:
                raise error(f"{path} has {status.st_size:,} bytes; at most {max_bytes:,} are read.", hint)
            return file.read(min(status.st_size, max_bytes) + 1)  # Python makes room for all that is asked for
    except FileNotFoundError as missing:
        raise error(f"There is no file {path}.", hint) from missing
    except OSError as unreadable:
        raise error(f"{path} cannot be read: {unreadable.strerror or unreadable}.", hint) from unreadable


def parse_json(
    data: bytes | str,
    kind: type[Any] = dict,
    *,
    where: str,
    error: type[SaekitError] = WorkspaceError,
    hint: str | None = None,
    finite: bool = True,
) -> Any:
    """The value of a JSON document.

    Args:
        where: what the message calls the document, such as its path.
        kind, error, hint, finite: as for :func:`read_json`.

    Raises:
        error: the document is not UTF-8, not JSON, nested deeper than 64 levels, of another kind, or holds NaN or an infinity.
    """

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"it holds {text}, which is not a finite number")

    def number(text: str) -> float:
        value = float(text)
        if finite and value in (float("inf"), float("-inf")):
            refuse(text)
        return value

    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        value = json.loads(text, parse_float=number, parse_constant=refuse if finite else None)
        too_deep = _deeper(value, _MAX_DEPTH)
    except (ValueError, RecursionError) as fault:
        too_deep = isinstance(fault, RecursionError)
        if not too_deep:
            raise error(f"{where} is damaged: {fault}.", hint) from fault
    if too_deep:
        raise error(f"{where} is nested deeper than {_MAX_DEPTH} levels.", hint)
    if not isinstance(value, kind):
        raise error(f"{where} holds {_NAMES.get(type(value), 'nothing')}, not {_NAMES[kind]}.", hint)
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Whether a value is nested deeper than `limit` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        inside = (each for box in level for each in (box.values() if isinstance(box, dict) else box))
        level = [each for each in inside if isinstance(each, dict | list)]
    return bool(level)
