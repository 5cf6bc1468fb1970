"""Files that exist whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from saekit.errors import StorageFull

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` beside `path`, force it to the disk and rename it: a crash leaves the old file or the new one.

    Raises:
        StorageFull: there is no room for it. What `path` held before is still there, and nothing is left beside it.
    """
    beside = path.with_name(path.name + PARTIAL)
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise StorageFull(
                f"No room for {path.name} ({len(data):,} bytes) in {path.parent}: {error.strerror}.",
                "What was complete is kept: make room and run the same command again.",
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
