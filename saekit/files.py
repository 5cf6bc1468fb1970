"""Files that exist whole or not at all: written beside, forced to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from saekit.errors import SaekitError, StorageFull, WorkspaceError

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends, and leaves nothing when it fails.

    Raises:
        StorageFull: there is no room; what `path` held before is still there.
        WorkspaceError: nothing can be written there.
    """
    beside = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def write_whole(path: Path, data: bytes | memoryview | str) -> None:
    """Write `data` to `path`, text as UTF-8 with ? for what has none; see :func:`whole`."""
    with whole(path) as file:
        file.write(data.encode("utf-8", "replace") if isinstance(data, str) else data)


def replace(beside: Path, path: Path) -> None:
    """Rename, and make the rename survive a power cut."""
    beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or a quota on it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"os error {code})" in str(error) for code in _FULL)  # all that safetensors passes on


def unwritable(path: Path, error: Exception) -> SaekitError:
    """The error for a `path` that could not be written, or made."""
    if is_full(error):
        what = f"No room for {path.name} in {path.parent}."
        return StorageFull(what, "What was complete is kept: make room and run the same command again.")
    return WorkspaceError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.", "Choose another place.")


def document(data: Any) -> str:
    """`data` as one JSON document, in which a number that does not exist is null."""
    return json.dumps(_finite(data), ensure_ascii=False, indent=2, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data
