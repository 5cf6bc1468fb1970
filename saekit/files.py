"""Files that exist whole or not at all: written beside, forced to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from saekit.errors import StorageFull

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends, and leaves nothing when it fails.

    Raises:
        StorageFull: there is no room; what `path` held before is still there.
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
        if is_full(error):
            raise no_room(path) from error
        raise


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`; see :func:`whole`."""
    with whole(path) as file:
        file.write(data)


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


def no_room(path: Path) -> StorageFull:
    """The error for a `path` that did not fit."""
    return StorageFull(
        f"No room for {path.name} in {path.parent}.", "What was complete is kept: make room and run the same command again."
    )
