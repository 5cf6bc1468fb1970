"""Files of arrays that follow from the rows of dictionaries: read where they exist, else computed and written."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays import feature_arrays, files
from feature_db.arrays.feature_arrays import FeatureArrays
from feature_db.records import IndexedSAE
from feature_db.store import read, stored
from feature_db.store.stored import TEXT
from saekit.errors import DatabaseError, SaekitError


class Made(Protocol):
    """Arrays that can be stored."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        ...

    def texts(self) -> dict[str, str]:
        """What is no array."""
        ...

    def terms(self) -> NDArray[np.int64]:
        """Ids of the terms that the arrays refer to."""
        ...


T = TypeVar("T", bound=Made)
Reading = Callable[[], AbstractContextManager[sqlite3.Connection]]
_log = logging.getLogger(__name__)
_KEPT = 8
"""Dictionaries whose arrays are kept. Mapped arrays cost no memory, but copies of embeddings do."""
_PROBES = 16


class OldFile(DatabaseError):
    """A sound file of another version of saekit, or of an embedder."""


class Derived(ABC, Generic[T]):
    """One kind of file: the arrays of each dictionary, opened or computed once. Safe to share by threads and processes.

    The name of a file has the key of the build, so another build never opens it. A file holds ids of terms; a few of them are
    stored with their texts, to detect a file that was made with other ids.

    Args:
        reading: gives a connection that holds a read lock.
    """

    suffix: str
    method: str
    """Raise it where the same rows give another file. Files of another method are made again, and are not damaged."""
    near: frozenset[str] = frozenset()
    """Names of arrays of numbers that differ between processors by rounding."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._lock = threading.Lock()
        self._made: dict[tuple[int, str, str | None], T] = {}
        self._warned: set[Path] = set()

    def of(self, sae: IndexedSAE) -> T:
        """The arrays of a dictionary.

        The file holds nothing that the rows do not hold, so a file that is missing or cannot be read is no error here: its
        arrays are computed. A missing or old file is written where this is possible; `verify` reports a damaged one.
        """
        with self._reading() as db:
            build = sae.id, sae.fingerprint, read.build_key(db, sae.address)
            with self._lock:
                if build not in self._made:
                    if len(self._made) >= _KEPT:
                        del self._made[next(iter(self._made))]
                    self._made[build] = self._opened(db, sae, self.path(sae))
                return self._made[build]

    def path(self, sae: IndexedSAE) -> Path:
        """Where the file of a dictionary is: the name follows from all that determines the rows."""
        with self._reading() as db:
            key = read.build_key(db, sae.address)
        return sae.vectors.with_name(f"{sae.site}-{key[:16] if key else f'unknown-{sae.fingerprint[:16]}'}{self.suffix}")

    def write(self, sae: IndexedSAE) -> Path:
        """Write the file of a dictionary, unless it exists and is sound; returns its path.

        Raises:
            StorageFull, WorkspaceError: the file cannot be written.
        """
        path = self.path(sae)
        with self._reading() as db:
            if not self._is_sound(db, sae, path):
                self._write(db, path, self._computed(db, sae))
        return path

    def check(self, sae: IndexedSAE) -> list[str]:
        """Compare the file of a dictionary with its checksum and with the rows; returns what could not be checked.

        Raises:
            DatabaseError: the file differs from what the rows give.
        """
        path = self.path(sae)
        if not path.exists():
            return []
        with self._reading() as db:
            _, texts = files.mapped(path)
            current = texts.get("method") == self.method
            if (current or files.CHECKSUM in texts) and not files.intact(path):
                raise DatabaseError(f"The arrays of features in {path} are damaged: their checksum differs.", files.HINT)
            made = self._computed_again(db, sae, texts) if current else "another version of saekit made it"
            if isinstance(made, str):
                return [f"{path.name} was not compared with the database: {made}. `saekit index` makes it again."]
            if not files.equal(path, made.arrays(), self._texts(db, made), self.near):
                raise DatabaseError(f"The arrays of features in {path} are damaged: they differ from the database.", files.HINT)
        return []

    def _opened(self, db: sqlite3.Connection, sae: IndexedSAE, path: Path) -> T:
        replaced = not path.exists()
        try:
            return self._mapped(db, sae, path)
        except OldFile:
            replaced = True
        except DatabaseError as error:
            if not replaced:
                self._warn(path, f"{error.what} Searches compute them again each time. {error.hint}")
        made = self._computed(db, sae)
        if replaced:
            try:
                self._write(db, path, made)
                return self._mapped(db, sae, path)
            except (SaekitError, OSError) as error:
                self._warn(path, f"{path} was not written, so that searches compute it again each time: {error}")
        return made

    def _mapped(self, db: sqlite3.Connection, sae: IndexedSAE, path: Path) -> T:
        found, texts = self._from_file(path, sae)
        if texts.get("terms") != self._texts(db, found)["terms"]:
            raise DatabaseError(f"The arrays of features in {path} do not belong to this database.", files.HINT)
        return found

    def _write(self, db: sqlite3.Connection, path: Path, made: T) -> None:
        files.write(path, made.arrays(), self._texts(db, made))

    def _is_sound(self, db: sqlite3.Connection, sae: IndexedSAE, path: Path) -> bool:
        """Whether the file can be used, and its content matches its checksum."""
        try:
            self._mapped(db, sae, path)
            return files.intact(path)
        except DatabaseError:
            return False

    def _current(self, path: Path, texts: dict[str, str]) -> None:
        """Raise where another version of saekit made the file with these texts."""
        if texts.get("method") != self.method:
            raise OldFile(f"Another version of saekit made {path}.", files.HINT)

    def _warn(self, path: Path, what: str) -> None:
        """Log once for each file."""
        if path not in self._warned:
            self._warned.add(path)
            _log.warning("%s", what)

    def _texts(self, db: sqlite3.Connection, of: T) -> dict[str, str]:
        """The texts of a file, with some terms and their texts."""
        ids = of.terms()
        some = np.unique(ids[np.linspace(0, len(ids) - 1, _PROBES).astype(np.int64)]).tolist() if len(ids) else []
        found = db.execute(f"SELECT id || ' ' || text FROM term WHERE id IN ({', '.join('?' * len(some))}) ORDER BY id", some)
        terms = json.dumps([row[0] for row in stored.rows("the words of a corpus", found, TEXT)])
        return of.texts() | {"method": self.method, "terms": terms}

    @abstractmethod
    def _computed(self, db: sqlite3.Connection, sae: IndexedSAE) -> T:
        """The arrays, from the rows."""

    def _computed_again(self, db: sqlite3.Connection, sae: IndexedSAE, texts: dict[str, str]) -> T | str:
        """What the file with these texts must hold, or why this is unknown."""
        return self._computed(db, sae)

    @abstractmethod
    def _from_file(self, path: Path, sae: IndexedSAE) -> tuple[T, dict[str, str]]:
        """The arrays of a file, mapped, and its texts."""


class Features(Derived[FeatureArrays]):
    """The rows of the features of each dictionary, as arrays."""

    suffix = feature_arrays.SUFFIX
    method = "1"

    def _computed(self, db: sqlite3.Connection, sae: IndexedSAE) -> FeatureArrays:
        return feature_arrays.from_rows(db, sae)

    def _from_file(self, path: Path, sae: IndexedSAE) -> tuple[FeatureArrays, dict[str, str]]:
        self._current(path, files.mapped(path)[1])
        return feature_arrays.mapped(path, sae.n_features)
