"""Checksums of the files of a workspace, in one file at its root: `checksums.txt`.

The line about a new file is added after the file, and the line about a changed file before it, so a command that is killed at any
moment leaves no file that looks damaged::

    # saekit checksums 1
    <sha256> <check> sae/resid_post.3/cfg.json      content that the file may have
    - <check> sae/resid_post.3/cfg.json             earlier lines about the file no longer apply
    - <check> sae/resid_post.3/checkpoints/         nor do those about all files below

`check` is the CRC-32 of the rest of the line. Shards of activations are not listed: their manifest has their checksums.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FILE = "checksums.txt"
_HEADER = "# saekit checksums 1"
_LINE = re.compile(r"([0-9a-f]{64}|-) ([0-9a-f]{8}) (.+)")
_DEPTH = 8  # folders between a file of a workspace and its root, at most
_COMPACT_LINES = 1000


@dataclass
class Contents:
    """What a ledger says."""

    hashes: dict[str, set[str]] = field(default_factory=dict)
    """Checksums that each file may have, by its path relative to the root."""
    problems: list[str] = field(default_factory=list)
    """Lines that are damaged."""
    lines: int = 0


@dataclass(frozen=True)
class Ledger:
    """The checksums of the files below `root`."""

    root: Path

    @classmethod
    def of(cls, path: Path) -> Ledger | None:
        """The ledger that has to know of `path`; None where no workspace with a ledger holds it."""
        path = path.absolute()
        for root in list(path.parents)[:_DEPTH]:
            if (root / FILE).is_file() and not (root / FILE).is_symlink():
                return cls(root)
        return None

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / FILE

    def create(self) -> None:
        """Make the file if it does not exist.

        Raises:
            OSError: it cannot be made.
        """
        if not self.path.exists():
            self.append([_HEADER])

    def add(self, files: Mapping[Path, Path]) -> None:
        """Record files that are about to appear.

        Args:
            files: final path -> file that has the content now.

        Raises:
            OSError: the ledger cannot be written; nothing must appear then.
        """
        self.append([_line(file_sha256(source), self._relative(target)) for target, source in files.items()])

    def forget(self, *paths: Path) -> None:
        """Record that files change or go, before they do; for a folder, that all files below do.

        Raises:
            OSError: the ledger cannot be written.
        """
        self.append(self.without(*paths))

    def without(self, *paths: Path) -> list[str]:
        """The lines of :meth:`forget`, for :meth:`append`."""
        return [_line("-", self._relative(path) + ("/" if path.is_dir() else "")) for path in paths]

    def read(self) -> Contents:
        """What the ledger says.

        Raises:
            OSError: it cannot be read.
        """
        found = Contents()
        lines = self.path.read_bytes().split(b"\n")
        if lines[0] != _HEADER.encode():
            found.problems.append("the first line is damaged")
        if lines[-1]:
            found.problems.append("the last line is cut short")
        for number, raw in enumerate(lines[1:-1], 2):
            match = _LINE.fullmatch(raw.decode("utf-8", "replace"))
            if match is None or match[2] != _check(match[1], match[3]):
                found.problems.append(f"line {number} is damaged")
                continue
            found.lines += 1
            digest, name = match[1], match[3]
            if digest != "-":
                found.hashes.setdefault(name, set()).add(digest)
            elif not name.endswith("/"):
                found.hashes.pop(name, None)
            else:
                found.hashes = {each: own for each, own in found.hashes.items() if not each.startswith(name)}
        return found

    def hashes(self) -> dict[str, set[str]]:
        """Checksums that each file may have; empty where there is no ledger that can be read."""
        try:
            return self.read().hashes
        except OSError:
            return {}

    def compacted(self) -> str | None:
        """The text of the ledger without lines that no longer apply; None where there are few of them, or damaged ones.

        Raises:
            OSError: the ledger cannot be read.
        """
        found = self.read()
        kept = sum(map(len, found.hashes.values()))
        return None if found.problems or found.lines <= max(_COMPACT_LINES, 2 * kept) else _text(found.hashes)

    def text_with(self, found: Contents, added: Iterable[Path], dropped: Collection[str] = ()) -> str:
        """The text of the ledger with files that had no checksum, and without damaged lines.

        Args:
            found: what :meth:`read` gave.
            added: files below the root.
            dropped: paths relative to the root, of entries to leave out.

        Raises:
            OSError: a file cannot be read.
        """
        hashes = {name: own for name, own in found.hashes.items() if name not in dropped}
        return _text(hashes | {self._relative(path): {file_sha256(path)} for path in added})

    def _relative(self, path: Path) -> str:
        return path.absolute().relative_to(self.root.absolute()).as_posix()

    def append(self, lines: list[str]) -> None:
        """Add lines to the file.

        Raises:
            OSError: the ledger cannot be written.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # by a power cut
            data = ("\n" * torn + "\n".join(lines) + "\n").encode()
            if os.write(descriptor, data) < len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits.

    Raises:
        OSError: it cannot be read, or is a symbolic link.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(hashes: Mapping[str, set[str]]) -> str:
    lines = [_line(digest, name) for name, own in sorted(hashes.items()) for digest in sorted(own)]
    return "\n".join([_HEADER, *lines]) + "\n"


def _line(digest: str, name: str) -> str:
    return f"{digest} {_check(digest, name)} {name}"


def _check(digest: str, name: str) -> str:
    return f"{zlib.crc32(f'{digest} {name}'.encode()):08x}"
