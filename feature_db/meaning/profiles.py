"""The profiles of the dictionaries of one database: read from their files, or computed from the rows where a file is missing."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from feature_db.meaning import files
from feature_db.meaning.embedders import DEFAULT, Embedder, embedder
from feature_db.meaning.profile import Profile, profile
from feature_db.records import IndexedSAE
from feature_db.store import read
from saekit.errors import ConfigError, DatabaseError

_KEPT = 64
"""Profiles in memory. The memory of mapped ones belongs to the operating system."""
Reading = Callable[[], AbstractContextManager[sqlite3.Connection]]


class Profiles:
    """Profiles by dictionary, each made once. Safe to share by threads.

    Args:
        reading: gives a connection that holds a read lock.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._lock = threading.Lock()
        self._made: dict[Path, tuple[Profile, Embedder]] = {}

    def of(self, sae: IndexedSAE) -> tuple[Profile, Embedder]:
        """The profile of a dictionary, and the embedder of its words.

        The file holds nothing that the rows do not hold, so a file that is missing or cannot be read is not an error here:
        `verify` reports it, and `saekit index` writes it.
        """
        path = self.path(sae)
        with self._lock:
            if path not in self._made:
                if len(self._made) >= _KEPT:
                    self._made.clear()
                try:
                    found, name = files.mapped(path, sae.n_features)
                    self._made[path] = found, embedder(name)
                except DatabaseError:
                    self._made[path] = self._computed(sae, embedder()), embedder()
            return self._made[path]

    def write(self, sae: IndexedSAE, name: str = DEFAULT) -> Path:
        """Write the file of a dictionary's profile, unless it exists and is of this embedder; returns its path.

        Raises:
            ConfigError: there is no such embedder.
            StorageFull, WorkspaceError: the file cannot be written.
        """
        path = self.path(sae)
        try:
            if files.mapped(path, sae.n_features)[1] == name:
                return path
        except DatabaseError:
            pass
        files.write(path, self._computed(sae, embedder(name)), name)
        with self._lock:
            self._made.pop(path, None)
        return path

    def check(self, sae: IndexedSAE) -> list[str]:
        """Compare the file of a dictionary's profile with the rows, byte by byte; returns what could not be checked.

        Raises:
            DatabaseError: the file differs from what the rows give.
        """
        path = self.path(sae)
        if not path.exists():
            return []
        _, name = files.mapped(path, sae.n_features)
        try:
            by = embedder(name)
        except ConfigError as error:
            return [f"{path.name} was not checked: {error}"]
        if path.read_bytes() != files.encoded(self._computed(sae, by), name):
            raise DatabaseError(f"The words of features in {path} are damaged: they differ from the database.", files.HINT)
        return []

    def path(self, sae: IndexedSAE) -> Path:
        """Where a dictionary's profile is: the name follows from all that determines the rows."""
        with self._reading() as db:
            key = read.build_key(db, sae.address) or "none"
        return sae.vectors.with_name(f"{sae.site}-{key[:16]}{files.SUFFIX}")

    def _computed(self, sae: IndexedSAE, by: Embedder) -> Profile:
        with self._reading() as db:
            return profile(db, sae.id, sae.n_features, by)
