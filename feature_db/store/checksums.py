"""The checksum of a database file, kept in a second file in the same folder.

`features.sqlite.sha256` holds one line in the format of `sha256sum`, so `sha256sum -c features.sqlite.sha256` checks it too.
saekit removes that file before it writes to the database and writes it again afterwards. An existing checksum must therefore
match every byte of the database. If the checksum is missing, the last write was interrupted, or an older version wrote the
database.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from enum import Enum
from pathlib import Path

from saekit import files
from saekit.errors import SaekitError

_SUFFIX = ".sha256"
_HASH = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"


class State(Enum):
    """What a checksum says about its file."""

    MATCHES = "matches"
    MISSING = "missing"
    DIFFERS = "differs"


def file_sha256(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(path: Path) -> Path:
    """The file that holds the checksum of the database at `path`."""
    return path.with_name(path.name + _SUFFIX)


def state(path: Path) -> State:
    """Compare the database at `path` with its checksum. The caller holds a lock that keeps writers away.

    Raises:
        OSError: one of the two files cannot be read.
    """
    try:
        stored = checksum_path(path).read_bytes()
    except FileNotFoundError:
        return State.MISSING
    return State.MATCHES if stored == _line(path) else State.DIFFERS


def remove(path: Path) -> None:
    """Remove the checksum, before the database is written.

    Raises:
        OSError: the file cannot be removed.
    """
    if checksum_path(path).exists():
        files.remove(checksum_path(path))
        files.sync(path.parent)


def record(path: Path) -> bool:
    """Write the checksum of the current database. Returns False if it could not be written, as on a full disk."""
    try:
        files.write_whole(checksum_path(path), _line(path), checksum=False)
    except (OSError, SaekitError):
        return False
    return True


def _line(path: Path) -> bytes:
    # A process that closes a file loses all its POSIX locks on it, including SQLite's. So another process computes the hash.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _HASH, str(path.absolute())], capture_output=True, check=False)
    digest = done.stdout.decode().strip()
    if done.returncode or len(digest) != 64:
        raise OSError(f"{path} cannot be read: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return f"{digest}  {path.name}\n".encode()
