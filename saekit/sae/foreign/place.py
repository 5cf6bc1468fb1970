"""The files of an SAE: in a folder on disk, or in a repository on the hub."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from saekit.errors import SAEFormatError

_MOST_FILES = 20_000
_DEPTH = 2  # folders below the one that is given, in which files are looked for


class NoSuchFile(Exception):
    """A place holds no such file."""


@dataclass(frozen=True)
class Place:
    """A folder that holds an SAE, or several.

    Attributes:
        shown: what messages call it.
        names: its files, relative to it.
        get: path on disk of a file, by its name relative to the folder; raises :class:`NoSuchFile`.
        entry: the one file that is meant, where the user named a file.
        repository: owner/name on the hub, where it is known.
        path: the folder in the repository, or on disk; some tools file facts in it. "" is the root of a repository.
        revision: the commit, where it is known.
    """

    shown: str
    names: tuple[str, ...]
    get: Callable[[str], Path] = field(repr=False)
    entry: str | None = None
    repository: str | None = None
    path: str = ""
    revision: str | None = None

    @property
    def whole_path(self) -> str:
        """The path with the entry, where there is one."""
        return posixpath.join(self.path, self.entry) if self.entry else self.path

    def found(self) -> str:
        """The files in it as a message shows them."""
        top = sorted({name.split("/")[0] + ("/" if "/" in name else "") for name in self.names})
        return ", ".join(top[:8]) + (f" and {len(top) - 8} more" if len(top) > 8 else "") if top else "nothing"


def on_disk(source: Path) -> Place:
    """The place of a folder or file.

    A folder in the cache of the hub names its repository and its commit. So does a folder below one that is called like a
    repository, for the caller to look up.
    """
    whole = source.absolute()  # not resolved: files in the cache of the hub are links to blobs without names
    folder, entry = (whole, None) if whole.is_dir() else (whole.parent, whole.name)
    repository, revision, path = _in_cache(folder)

    def get(name: str) -> Path:
        file = folder / posixpath.normpath(name)
        if not file.is_file():
            raise NoSuchFile(name)
        return file

    return Place(str(source), tuple(_below(folder)), get, entry, repository, path, revision)


def _in_cache(folder: Path) -> tuple[str | None, str | None, str]:
    """Repository, commit and path in it of a folder in the cache of the hub: `models--OWNER--NAME/snapshots/COMMIT/...`."""
    parts = folder.parts
    for i, part in enumerate(parts[:-2]):
        if part.startswith("models--") and part.count("--") == 2 and parts[i + 1] == "snapshots":
            return part.removeprefix("models--").replace("--", "/"), parts[i + 2], "/".join(parts[i + 3 :])
    return None, None, folder.as_posix()


def _below(folder: Path, depth: int = _DEPTH) -> list[str]:
    names: list[str] = []
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                names.append(path.name)
            elif depth > 1 and path.is_dir():
                names += [f"{path.name}/{name}" for name in _below(path, depth - 1)]
            if len(names) > _MOST_FILES:
                break
    except OSError as error:
        raise SAEFormatError(f"{folder} cannot be read: {error.strerror}.", "Check its permissions.") from error
    return names
