"""A store of activations on disk: opening, checking and reading."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from saekit.activations.store.base import StoredActivations
from saekit.activations.store.manifest import Manifest, ShardEntry
from saekit.activations.store.shard import TOKEN_COLUMNS, column_problem
from saekit.errors import StoreCorrupt
from saekit.names.site import Site
from saekit.progress import track

if TYPE_CHECKING:
    pass

_MEND = (
    "Restore it from a copy, or move it away and run the same cache command again: it computes that part again from the corpus."
)
_SOUND = "The file matches its checksum: keep it. Check the installation of h5py, and that no other program changed the manifest."
_OPEN_FILES = 16


class ActivationStore(StoredActivations):
    """Activations that :func:`saekit.activations.write_store` wrote. Open one with :meth:`open`.

    Attributes:
        manifest: what the activations are of, and the shards.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        widths = {Site.parse(site): int(width) for site, width in manifest.provenance["sites"].items()}
        super().__init__(path, widths, [entry.tokens for entry in manifest.shards])
        self.manifest = manifest
        self._files: OrderedDict[int, h5py.File] = OrderedDict()
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: str | Path, *, partial: bool = False) -> ActivationStore:
        """Open the store in the folder `path`, and check that every shard is there with its full length.

        Args:
            partial: also open a store that is not finished.

        Raises:
            StoreCorrupt: the folder holds no store, the store is not finished, its manifest does not parse, or a shard is
                missing or cut short.
            StoreMismatch: a newer version of saekit wrote it.
        """
        path = Path(path).absolute()  # shards are opened later, perhaps from another folder
        manifest = Manifest.load(path)
        for entry in manifest.shards:
            if problem := damaged(path, entry):
                raise StoreCorrupt(f"{path / entry.file} {problem}.", _MEND)
        if not (manifest.complete or partial):
            raise StoreCorrupt(f"{path} is unfinished: {manifest.n_tokens} tokens so far.", "Run the same cache command again.")
        return cls(path, manifest)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the activations are of: model, corpus, sites, context, packing, dtype."""
        return self.manifest.provenance

    @property
    def checksums(self) -> list[str]:
        """What tells these activations from others."""
        return [shard.sha256 for shard in self.manifest.shards]

    @property
    def complete(self) -> bool:
        """Whether the store holds every token that was asked for, or all that the corpus has."""
        return self.manifest.complete

    def verify(self, progress: bool = True) -> None:
        """Read everything: checksums, shapes, dtypes, counts.

        Raises:
            StoreCorrupt: names the first shard that is damaged and how to mend it.
        """
        for _, error in self.problems(progress):
            raise error

    def problems(self, progress: bool = True) -> Iterator[tuple[str, StoreCorrupt]]:
        """Read everything; gives (file, error) of each shard that is damaged or cannot be read."""
        with track("verifying", total=self.n_tokens, unit="tokens", enabled=progress) as bar:
            for index, entry in enumerate(self.manifest.shards):
                try:
                    self._check_shard(index)
                except StoreCorrupt as error:
                    yield entry.file, error
                bar.update(int(self._first_rows[index + 1]), note=entry.file)

    def _check_shard(self, shard: int) -> None:
        entry = self.manifest.shards[shard]
        path = self.path / entry.file
        if problem := damaged(self.path, entry):
            raise StoreCorrupt(f"{path} {problem}.", _MEND)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error
        if digest != entry.sha256:
            raise StoreCorrupt(f"{path} has changed since it was written: its checksum is another.", _MEND)
        try:
            with self._reading(shard):
                pass  # opening a shard checks its columns
        except StoreCorrupt as error:
            raise StoreCorrupt(error.what, _SOUND if error.hint == _MEND else error.hint) from error

    def _check_columns(self, shard: int, file: h5py.File) -> None:
        """Raise unless a shard holds what the manifest says, so that nothing larger is ever allocated.

        Raises:
            StoreCorrupt: a column is missing, has another shape or dtype, or is not stored plainly in this file.
        """
        entry = self.manifest.shards[shard]
        stored = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)
        expected: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            name: ((entry.tokens,), np.dtype(dtype)) for name, dtype in TOKEN_COLUMNS.items()
        }
        expected |= {f"sites/{site}": ((entry.tokens, width), stored) for site, width in self._widths.items()}
        for name, (shape, dtype) in expected.items():
            if problem := column_problem(file, name, shape, dtype):
                raise StoreCorrupt(f"{self.path / entry.file}: {name} {problem}.", _MEND)

    # Reading

    def columns(self, shard: int, names: Sequence[str], start: int = 0, stop: int | None = None) -> list[np.ndarray]:
        """Rows start..stop of a shard's columns: `tokens`, `position`, `document`, `special` or `sites/<site>` as it is stored.

        Raises:
            StoreCorrupt: the shard cannot be read.
        """
        with self._reading(shard) as file:
            return [file[name][start:stop] for name in names]

    @contextlib.contextmanager
    def _reading(self, shard: int) -> Iterator[h5py.File]:
        path = self.path / self.manifest.shards[shard].file
        try:
            with self._lock:  # readers may share a store between threads; h5py would take turns anyway
                if shard not in self._files:
                    file = _open(path)
                    try:
                        self._check_columns(shard, file)
                    except BaseException:
                        file.close()
                        raise
                    self._files[shard] = file
                    while len(self._files) > _OPEN_FILES:
                        self._files.popitem(last=False)[1].close()
                self._files.move_to_end(shard)
                yield self._files[shard]
        except OSError as error:
            raise _unreadable(path, error) from error
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise StoreCorrupt(f"{path} cannot be read: {error}.", _MEND) from error


def damaged(folder: Path, entry: ShardEntry) -> str:
    """What is wrong with the file of a shard, without reading it; "" if nothing is."""
    try:
        size = (folder / entry.file).stat().st_size
    except FileNotFoundError:
        return "is missing"
    return "" if size == entry.bytes else f"has {size} bytes of {entry.bytes}"


def _open(path: Path) -> h5py.File:
    """Open a shard without a lock: shards never change, and some file systems have no locks."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError:
        if os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() not in ("1", "TRUE", "BEST_EFFORT"):
            raise
        return h5py.File(path.open("rb"), "r")  # HDF5 takes the variable over the argument, and locks no file of Python


def _unreadable(path: Path, error: OSError) -> StoreCorrupt:
    """The error for a shard that could not be read. Only errors without a reason of the operating system mean damage."""
    mend = _MEND if error.errno is None else "The file itself may be sound: check its permissions and the disk."
    return StoreCorrupt(f"{path} cannot be read: {error}.", mend)
