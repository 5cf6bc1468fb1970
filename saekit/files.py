"""Files that exist whole or not at all.

A file is written under a random temporary name in the folder that it goes to, forced to the disk, and renamed. Another person may
have prepared that folder, so temporary files are created exclusively and symbolic links are never followed for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from saekit.errors import SaekitError, StorageFull, Unwritable
from saekit.ledger import Ledger

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_ABANDONED_SECONDS = 24 * 3600.0
_PREFIX, PARTIAL = ".saekit-", ".partial"
_LEFTOVER = re.compile(
    r"\.saekit-[0-9a-f]{16}\.partial"
    # Names that earlier versions used for the same purpose.
    r"|(saekit\.toml|manifest\.json|shard-\d{5,}\.h5|features\.sqlite|(eval|train|sweep)-.+\.(json|html))\.partial"
    r"|features\.sqlite\.partial-(wal|shm|journal)|features\.sqlite\..+\.state\.npz\.partial|.+-[0-9a-f]{16}\.npy\.partial"
    r"|\.(cfg\.json|sae_weights\.safetensors|sparsity\.safetensors)\.partial"
    r"|\.(step|best)-\d{9}\.partial"
)


@contextlib.contextmanager
def whole(path: Path, *, checksum: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that becomes `path` when the block ends, and leaves nothing when the block fails.

    A symbolic link at `path` is replaced, not followed. The checksum of a file in a workspace is recorded in its ledger.

    Args:
        path: the file.
        checksum: False where something else holds the checksum of the file.

    Raises:
        StorageFull: the disk is full; the previous content of `path` is kept.
        Unwritable: `path` cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = _create(path.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _place(temporary, path, checksum=checksum)
            sync(path.parent)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def write_whole(path: Path, data: bytes | memoryview | str, *, checksum: bool = True) -> None:
    """Write `data` to `path`; see :func:`whole`. Text is encoded as UTF-8; what UTF-8 cannot encode becomes a question mark."""
    with whole(path, checksum=checksum) as file:
        file.write(data.encode("utf-8", "replace") if isinstance(data, str) else data)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` with a random name, removed when the block ends.

    For files that a library writes by name, and for folders that appear as a whole: write into the temporary folder, then move
    the files with :func:`publish` or the folder itself with :func:`replace`.

    Raises:
        OSError: `parent` cannot be made or written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        temporary = parent / _random_name()
        temporary.mkdir()  # exclusive: fails where anything has that name
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _hold_new(descriptor):
            break
        os.close(descriptor)
    try:
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def publish(source: Path, path: Path, *, checksum: bool = True) -> None:
    """Move a file out of a :func:`temporary_folder` to `path`, with the permissions that new files have.

    The file is on the disk before it appears under its new name. Call :func:`sync` on the folder after the last file.
    """
    source.chmod(source.parent.stat().st_mode & 0o666)  # some libraries write files that only their owner can read
    sync(source)
    _place(source, path, checksum=checksum)


def replace(temporary: Path, path: Path) -> None:
    """Rename a file or a folder, and make the new name survive a power cut. Checksums are recorded as in :func:`whole`."""
    _place(temporary, path)
    sync(path.parent)


def remove(*paths: Path) -> None:
    """Remove files and folders of ours, and their checksums from the ledger. Those that do not exist are skipped.

    A folder is renamed before its files are removed, so that a kill leaves the whole folder or a temporary one, which
    :func:`clean` removes. Several paths must be in one workspace and on one file system; they go together.

    Raises:
        OSError: one cannot be removed.
    """
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if not there:
        return
    ledger, late = _ledger(there[0]), False
    lines = [] if ledger is None else ledger.without(*there)
    if ledger is not None:
        try:
            ledger.append(lines)
        except OSError as error:
            if not is_full(error):
                raise
            late = True  # removing makes room for the lines
    if len(there) == 1 and (there[0].is_symlink() or not there[0].is_dir()):
        there[0].unlink(missing_ok=True)
    else:
        aside = there[0].parent / _random_name()
        if len(there) == 1:
            there[0].rename(aside)
        else:
            aside.mkdir()
            for number, path in enumerate(there):
                path.rename(aside / str(number))
        sync(aside.parent)
        shutil.rmtree(aside)
    if ledger is not None and late:
        ledger.append(lines)


def record(path: Path, source: Path | None = None) -> None:
    """Record the checksum of a file, or of all files in a folder, in the ledger of the workspace; nothing happens outside of one.

    Args:
        path: where the file will be.
        source: where it is now; None: at `path`.

    Raises:
        OSError: the file cannot be read, or the ledger cannot be written.
    """
    source = source or path
    if (ledger := _ledger(path)) is None:
        return
    if source.is_dir():
        below = [each for each in source.rglob("*") if each.is_file() and not each.is_symlink()]
        ledger.add({path / each.relative_to(source): each for each in below})
    else:
        ledger.add({path: source})


def _ledger(path: Path) -> Ledger | None:
    """The ledger that has to know of `path`: none for what is in a temporary folder."""
    return None if any(map(is_leftover, path.parts)) else Ledger.of(path)


def _place(temporary: Path, path: Path, *, checksum: bool = True) -> None:
    """Rename a file or a folder and record its checksums, in an order such that no kill leaves a file that looks damaged."""
    if not checksum:
        temporary.replace(path)
    elif path.exists():
        record(path, temporary)  # the previous checksum stays valid, too
        temporary.replace(path)
    else:
        temporary.replace(path)
        try:
            record(path)
        except OSError:
            remove(path)
            raise


def open_append(path: Path, *, truncate: bool = False) -> BinaryIO:
    """Open a file for appending without following links. Call :func:`record` when it is complete.

    Args:
        path: made if it does not exist.
        truncate: drop what it holds.

    Raises:
        Unwritable: the file cannot be opened, or is a symbolic link, has a second name or is no ordinary file.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise link_error(path, error) or unwritable(path, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise Unwritable(f"{path} is not an ordinary file, or has a second name elsewhere.", "Use another folder.")
    if (ledger := _ledger(path)) is not None:
        ledger.forget(path)
    if truncate:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "ab")


def clean(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`. Files of running processes stay.

    Only names that saekit gives to temporary files are considered. Symbolic links are neither followed nor removed.
    """
    with contextlib.suppress(OSError):
        for item in list(os.scandir(folder)):
            if is_leftover(item.name) and not item.is_symlink():
                with contextlib.suppress(OSError):
                    _remove_abandoned(Path(item.path))


def is_leftover(name: str) -> bool:
    """Whether `name` is one that saekit gives to temporary files and folders."""
    return _LEFTOVER.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):  # some file systems lack it
            raise
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or a quota on it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"os error {code})" in str(error) for code in _FULL)  # safetensors passes on the text alone


def unwritable(path: Path, error: Exception) -> SaekitError:
    """The typed error for a `path` that could not be written or made."""
    if is_full(error):
        what = f"No room for {path.name} in {path.parent}."
        return StorageFull(what, "Complete files are kept: free some space and run the same command again.")
    reason = getattr(error, "strerror", None) or error
    return Unwritable(f"{path} cannot be written: {reason}.", "Check its permissions, or choose another place.")


def document(data: Any) -> str:
    """`data` as one JSON document; NaN and infinities become null."""
    return json.dumps(_finite(data), ensure_ascii=False, indent=2, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def _random_name() -> str:
    return f"{_PREFIX}{secrets.token_hex(8)}{PARTIAL}"


def _create(folder: Path) -> tuple[int, Path]:
    """A new file with a random name, as (descriptor, path)."""
    while True:
        path = folder / _random_name()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        if _hold_new(descriptor):
            return descriptor, path
        os.close(descriptor)


def _hold_new(descriptor: int) -> bool:
    """Mark a new temporary file or folder as in use; False where :func:`clean` of another process removed it just before."""
    with contextlib.suppress(OSError):  # file systems without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def _remove_abandoned(path: Path) -> None:
    """Remove a temporary file or folder unless a running process holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY or time.time() - status.st_mtime < _ABANDONED_SECONDS:
                return  # a running process holds it or, on a file system without locks, may hold it
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


def link_error(path: Path, error: OSError) -> Unwritable | None:
    """The typed error where opening `path` failed because it is a symbolic link; None for other errors."""
    if error.errno != errno.ELOOP:
        return None
    return Unwritable(f"{path} is a symbolic link; saekit does not write through it.", "Put an ordinary file in its place.")
