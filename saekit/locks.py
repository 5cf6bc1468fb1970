"""Locks on files and folders, on file systems with and without locks.

Where the file system has locks (flock), a lock ends with its process, however the process ends. A file in the same folder, the
*record*, says which process holds the lock: its machine, its number, its command, and when it began. A process that was killed
leaves its record, from which one sees what was interrupted.

Some network file systems have no locks. There the record itself is the lock: it appears exclusively and with its content. The
record of a process that has ended on this machine is replaced. Nobody can tell whether a process on another machine still runs,
so its record stays until a person removes it; the error names the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from saekit import files
from saekit.errors import SaekitError, StorageFull
from saekit.json_files import read_json

_log = logging.getLogger(__name__)
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_LOOK_AGAIN = 0.05  # seconds; a look of `lock_state` holds the lock for microseconds
_MAX_COMMAND = 4000  # characters
_MAX_BYTES = 1 << 16
_warned: set[int] = set()  # devices without locks


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, or held it when it was killed."""

    host: str
    """Name of its machine."""
    machine: str
    """Identifier of the machine; empty on machines without one."""
    boot: str
    """Identifier of the machine's present run and of the process namespace; empty on machines without one."""
    pid: int
    started: int | None
    """When the process began, in clock ticks since the machine was started; None where this is unknown."""
    command: str
    """Its command line, as a shell takes it."""
    folder: str
    """The folder that it was run in."""
    since: float
    """When it took the lock, as Unix time."""

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        program = Path(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else Path("python")
        words = ["saekit" if program.name == "__main__.py" else program.name, *sys.argv[1:]]
        try:
            folder = str(Path.cwd())
        except OSError:  # it was removed
            folder = ""
        command, own = shlex.join(words)[:_MAX_COMMAND], os.getpid()
        return cls(socket.gethostname(), _machine(), _boot(), own, _started(own), command, folder, round(time.time(), 3))

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """The holder that a record names; None where there is no record, or where it cannot be read."""
        try:
            fields = read_json(path, max_bytes=_MAX_BYTES)
            found = cls(**fields)
        except (SaekitError, TypeError):
            return None
        texts = all(isinstance(each, str) for each in (found.host, found.machine, found.boot, found.command, found.folder))
        numbers = type(found.pid) is int and found.pid > 0 and type(found.since) in (int, float)
        return found if texts and numbers and type(found.started) in (int, type(None)) else None

    def runs(self) -> bool | None:
        """Whether the process still runs; None where nobody can tell, as of a process on another machine."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return False if self.machine and self.machine == _machine() else None  # the machine was started anew
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # it runs, as another user
        return self.started == _started(self.pid)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"`{self.command}`, process {self.pid} on {self.host} since {since}"


def record_of(path: Path) -> Path:
    """The record of the lock on a file or folder."""
    return path / ".lock-held" if path.is_dir() else path.with_name(f"{path.name}-held")


@contextlib.contextmanager
def lock(path: Path, busy: SaekitError, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock on the file or folder `path` until the block ends.

    A file is made if it does not exist, and is never truncated. It gets a record; a folder gets one only where the file system
    has no locks. A record stays when the block ends by a kill, an interruption, an unexpected error or a full disk.

    Args:
        path: a file, or an existing folder.
        busy: raised when another process holds the lock. Its hint is completed with what is known of that process.
        wait: seconds to wait for the other process before that.

    Raises:
        Unwritable: the file or the record cannot be made, or the file is a symbolic link.
    """
    kind = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() and not path.is_symlink() else os.O_RDWR | os.O_CREAT
    try:
        descriptor = os.open(path, kind | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise files.link_error(path, error) or files.unwritable(path, error) from error
    try:
        held: contextlib.AbstractContextManager[None]
        if not _flock(descriptor, path, busy, wait):
            held = _exclusive(record_of(path), busy, wait)
        elif path.is_dir():
            held = contextlib.nullcontext()
        else:
            held = _recorded(record_of(path))
        with held:
            yield
    finally:
        os.close(descriptor)


def lock_state(path: Path) -> tuple[Literal["free", "held", "unknown"], Holder | None]:
    """Whether a process holds the lock on the file `path`, and what its record says. Nothing is written.

    Returns:
        "free" with a holder: the process was killed. "unknown": it may run on another machine.
    """
    holder = Holder.read(record_of(path))
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return "free", holder
        except OSError as error:
            if error.errno in _BUSY:
                return "held", holder
        finally:
            os.close(descriptor)
    if holder is None:
        return "free", None
    return {True: "held", False: "free", None: "unknown"}[holder.runs()], holder  # type: ignore[return-value]


def _flock(descriptor: int, path: Path, busy: SaekitError, wait: float) -> bool:
    """Take the lock of the file system; False where it has none."""
    end = time.monotonic() + max(wait, _LOOK_AGAIN)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _BUSY:
                _warn(path, error)
                return False
            if time.monotonic() > end:
                raise _told(busy, record_of(path)) from error
        time.sleep(_LOOK_AGAIN)


def _warn(path: Path, error: OSError) -> None:
    device = path.stat().st_dev
    if device not in _warned:
        _warned.add(device)
        _log.warning(
            "The file system of %s has no locks (%s): the file %s is the lock instead.",
            path.parent,
            error.strerror or error,
            record_of(path).name,
        )


def _told(busy: SaekitError, record: Path) -> SaekitError:
    """The error `busy` with what the record says of the process that holds the lock."""
    holder = Holder.read(record)
    return busy if holder is None else type(busy)(busy.what, f"{busy.hint or ''} It is {holder}.".lstrip())


@contextlib.contextmanager
def _recorded(record: Path) -> Iterator[None]:
    """Keep the record of a lock that the file system holds. Without room for it, the lock has none."""
    own = Holder.here()
    try:
        files.write_whole(record, _text(own), checksum=False)
    except SaekitError:
        with contextlib.suppress(OSError):
            record.unlink(missing_ok=True)  # of a process that was killed
    yield from _until_ended(record, own)


def _until_ended(record: Path, own: Holder) -> Iterator[None]:
    """Yield, and remove the record unless the block was interrupted."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, SaekitError) and not isinstance(error, StorageFull):
            _remove(record, own)
        raise
    _remove(record, own)


def _remove(record: Path, own: Holder) -> None:
    with contextlib.suppress(OSError):
        if Holder.read(record) == own:
            record.unlink()


@contextlib.contextmanager
def _exclusive(record: Path, busy: SaekitError, wait: float) -> Iterator[None]:
    """Make the record exclusively: it is the lock."""
    own, replaced, end = Holder.here(), False, time.monotonic() + wait
    try:
        while not _appears(record, own):
            other = Holder.read(record)
            if other is not None and other.runs() is False:
                replaced = True
                _take_away(record, other)
            elif time.monotonic() < end:
                time.sleep(_LOOK_AGAIN)
            elif record.exists():
                raise _told_apart(busy, record, other)
        if replaced:
            time.sleep(_LOOK_AGAIN)  # another process that replaces the same record puts this one back
    except OSError as error:
        raise files.unwritable(record, error) from error
    if replaced and Holder.read(record) != own:
        raise busy
    try:
        yield
    finally:
        _remove(record, own)


def _told_apart(busy: SaekitError, record: Path, other: Holder | None) -> SaekitError:
    """The error `busy`, which names the record where only a person can tell whether its process still runs."""
    if other is not None and other.runs():
        return _told(busy, record)
    whose = f"It is {other}." if other is not None else "Its record cannot be read."
    return type(busy)(busy.what, f"{whose} If that command no longer runs, remove the file {record}.")


def _appears(record: Path, own: Holder) -> bool:
    """Make the record with its content unless there is one; returns whether it was made."""
    with files.temporary_folder(record.parent) as folder:
        new = folder / record.name
        new.write_text(_text(own), encoding="utf-8")
        files.sync(new)
        try:
            os.link(new, record)
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without second names
            pass
    try:
        descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(_text(own).encode())
    return True


def _take_away(record: Path, ended: Holder) -> None:
    """Remove the record of a process that has ended, and no other one."""
    with files.temporary_folder(record.parent) as folder, contextlib.suppress(FileNotFoundError):
        moved = folder / record.name
        record.rename(moved)
        if Holder.read(moved) != ended:  # another process replaced it in the meantime
            with contextlib.suppress(OSError):
                os.link(moved, record)


def _text(holder: Holder) -> str:
    return json.dumps(asdict(holder), indent=1) + "\n"


def _machine() -> str:
    return _content("/etc/machine-id")


def _boot() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{_content('/proc/sys/kernel/random/boot_id')} {namespace}".strip()


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine was started; None where this is unknown."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(facts[19])
    except (OSError, ValueError, IndexError):
        return None
