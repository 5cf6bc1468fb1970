"""Connections to the SQLite file: one per thread to read, and one at a time to write.

At rest the database is one file in rollback-journal mode, so it can be read in a read-only folder. A build that changes an
existing database uses a write-ahead log during the build, so it does not block readers.

Where the file system has no locks, as on some network mounts, SQLite can neither lock the file nor share a write-ahead log. There
a change is made in a copy, which takes the place of the file when it is complete, and readers open the file as one that does not
change: they see the state before or after, never one in between.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from feature_db.errors import code, typed
from feature_db.store import checksums, schema
from saekit import files
from saekit.errors import DatabaseError
from saekit.locks import lock

_WAIT = 30.0  # seconds for another process's lock
_looked: set[tuple[int, int]] = set()  # device and inode
_looked_lock = threading.Lock()
_locking: dict[int, bool] = {}  # whether a device has locks
_DENIED = (errno.EACCES, errno.EAGAIN, errno.EINTR)  # errors of a lock that another process holds
CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM)
"""What SQLite reports where a folder or file is read-only, or the disk is full."""


def reading(path: Path) -> sqlite3.Connection:
    """A read-only connection to the database at `path`.

    Raises:
        DatabaseError: the file does not exist, is no feature database, is damaged, has triggers or changed tables, or was
            written by a newer version of saekit.
    """
    with typed(path):
        _look(path)
        connection = _checked(path, _open_for_reading(path))
        schema.fill_in(connection)
        return connection


@contextmanager
def changing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes to the existing database at `path`, closed when the block ends.

    Without locks in the file system, the block works on a copy. It becomes the database unless the block raises.

    Raises:
        DatabaseError: as for :func:`reading`, or the file cannot be written, or another process changes it.
        StorageFull, Unwritable: the copy cannot be made.
    """
    with typed(path):
        _look(path)
    if has_locks(path):
        with closing(writing(path)) as connection:
            yield connection
        return
    try:
        with _alone(path), files.temporary_folder(path.parent) as folder:
            copy = folder / path.name
            shutil.copyfile(path, copy)
            with closing(writing(copy)) as connection:
                yield connection
            files.publish(copy, path, checksum=False)
            files.sync(path.parent)
    except OSError as error:
        raise files.unwritable(path, error) from error


def writing(path: Path) -> sqlite3.Connection:
    """A connection that may write to the existing database at `path`. Changes of a finished one go through :func:`changing`.

    Raises:
        DatabaseError: as for :func:`reading`, or the file cannot be written.
    """
    with typed(path):
        _look(path)
        connection = _checked(path, _connect(path, _writable(path)))
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -65536")  # KiB
        return connection


def creating(path: Path) -> sqlite3.Connection:
    """A connection to a new database in the empty file at `path`."""
    with typed(path):
        connection = _connect(path, _writable(path))
        connection.execute("PRAGMA page_size = 8192")  # holds the examples of two or three features; 4096 would hold one
        connection.execute("PRAGMA cache_size = -65536")
        schema.create(connection)
        return connection


def settle(path: Path) -> None:
    """Merge the write-ahead log into the file, or roll back an interrupted write. Does nothing while others use the file."""
    with suppress(sqlite3.Error, OSError):
        connection = _connect(path, _writable(path), wait=0)
        try:
            connection.execute("BEGIN IMMEDIATE")  # rolls back what a killed process left
            connection.execute("ROLLBACK")
            if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                matched = checksums.state(path) is checksums.State.MATCHES
                checksums.remove(path)  # the mode stands in the file
                try:
                    connection.execute("PRAGMA journal_mode = DELETE")
                finally:
                    if matched and not pending(path):
                        checksums.record(path)
        finally:
            connection.close()


def seal(path: Path) -> bool:
    """Merge the write-ahead log and record the checksum of the file; returns whether both were possible."""
    settle(path)
    with suppress(sqlite3.Error):
        connection = _connect(path, "ro" if has_locks(path) else "ro&immutable=1")
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT COUNT(*) FROM sae").fetchone()  # takes a lock that keeps writers away
            return not pending(path) and checksums.record(path)
        finally:
            connection.close()
    return False


def pending(path: Path) -> bool:
    """Whether the write-ahead log holds changes that are not merged into the file."""
    log = _log(path, "-wal")
    return log.exists() and log.stat().st_size > 0


class Connections:
    """Read-only connections to one database, one per thread. A connection is closed with its thread or by :meth:`close`.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._closed = False

    @property
    def here(self) -> sqlite3.Connection:
        """The connection of the calling thread.

        Raises:
            DatabaseError: the database was closed, or cannot be opened.
        """
        held: _Held | None = getattr(self._local, "held", None)
        if self._closed:
            raise self._was_closed()
        if held is None or held.process != os.getpid() or self._replaced(held):  # a connection must not cross a fork
            file = _identity(self._path)
            connection = reading(self._path)
            held = _Held(connection, None if file is None or has_locks(self._path) else file, schema.version(connection))
            self._local.held = held
            with self._lock:
                self._open.add(held)
        if self._closed:  # meanwhile, by another thread
            held.close()
            raise self._was_closed()
        return held.connection

    def _was_closed(self) -> DatabaseError:
        return DatabaseError(f"{self._path} was closed.", "Open it again: FeatureDB.open(path).")

    def _replaced(self, held: _Held) -> bool:
        """Whether the file was upgraded, or another one has taken its place. Without locks, each change replaces the file."""
        if held.connection.in_transaction:
            return False
        upgraded = held.version < schema.VERSION and held.version != schema.version(held.connection)
        return upgraded or (held.file is not None and held.file != _identity(self._path))

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The calling thread's connection, inside one transaction: all statements see the same state of the file."""
        with typed(self._path):
            db = self.here
            if db.in_transaction:
                yield db
                return
            db.execute("BEGIN")
            try:
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")  # nothing was written

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            self._closed = True
            for held in list(self._open):
                held.close()
        if _log(self._path, "-wal").exists():  # a build ended while these were open
            settle(self._path)


class _Held:
    """A connection that is closed when its thread ends.

    Args:
        file: the identity of a file that may be replaced, else None.
        version: of the file's tables.
    """

    def __init__(self, connection: sqlite3.Connection, file: tuple[int, int] | None, version: int) -> None:
        self.connection, self.file, self.version = connection, file, version
        self.process, self._current_process = os.getpid(), os.getpid

    def close(self) -> None:
        if self.process == self._current_process():
            self.connection.close()

    def __del__(self) -> None:
        self.close()


def _look(path: Path) -> None:
    """Check a file before SQLite opens it for the first time in this process, and :func:`settle` it.

    Later calls skip the check: closing the file would release the locks of this process's connections.
    """
    identity = _identity(path)
    with _looked_lock:
        if identity in _looked:
            return
        header = schema.check_header(path)
        assert identity is not None
        has_locks(path)
        _looked.add(identity)
    if 2 in header[18:20] or _log(path, "-journal").exists():  # 2: the file needs its write-ahead log
        settle(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None for a missing file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def has_locks(path: Path) -> bool:
    """Whether the file system of `path` has the locks that SQLite uses. It is asked once, before SQLite opens a file there."""
    device = path.stat().st_dev
    if device not in _locking:
        with path.open("rb") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                _locking[device] = True
            except OSError as error:
                _locking[device] = error.errno in _DENIED
    return _locking[device]


def _writable(path: Path) -> str:
    """The mode of a connection that may write."""
    return "rw" if has_locks(path) else "rw&nolock=1"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from changing the database, where SQLite cannot."""
    busy = DatabaseError(f"{path} is being changed by another process.", "Wait for that process to end.")
    with lock(path, busy, wait=_WAIT):
        yield


def _checked(path: Path, connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        schema.check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _open_for_reading(path: Path) -> sqlite3.Connection:
    refused: sqlite3.Error | str = "its file system has no locks"
    try:
        if has_locks(path):
            return _connect(path, "ro")
    except sqlite3.OperationalError as error:
        if code(error) not in CANNOT_WRITE:
            raise
        refused = error
    if pending(path) or _log(path, "-journal").exists():
        what = f"{path} has changes of an interrupted write in a file next to it, which cannot be merged here: {refused}."
        raise DatabaseError(what, "Make its folder writable, on a file system with locks, and open it once.")
    # A write-ahead log needs a file in the folder, and locks need a file system that has them. Nobody can be writing here.
    return _connect(path, "ro&immutable=1")


def _connect(path: Path, mode: str, *, wait: float = _WAIT) -> sqlite3.Connection:
    """Open the file and read from it once, so that an error comes here."""
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    # Each thread uses its own; another one may close it.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=wait, check_same_thread=False)
    try:
        _harden(connection, reader=mode.startswith("ro"))
        if mode.endswith("nolock=1"):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # else a write-ahead log needs memory shared by processes
        connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _harden(connection: sqlite3.Connection, *, reader: bool) -> None:
    """Keep a file that someone else made from running code."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # sorting needs no disk
    connection.execute("PRAGMA foreign_keys = ON")
    if hasattr(connection, "setconfig"):  # Python 3.12
        off = ("ENABLE_TRIGGER", "ENABLE_VIEW") if reader else ("ENABLE_VIEW",)
        for name, value in [("DEFENSIVE", True), *((name, False) for name in off)]:
            connection.setconfig(getattr(sqlite3, f"SQLITE_DBCONFIG_{name}"), value)


def _log(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
