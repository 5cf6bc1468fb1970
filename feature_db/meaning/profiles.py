"""The profiles of the dictionaries of one database, each with the embedder of its words."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays.derived import Derived, Features, Reading
from feature_db.arrays.files import HINT
from feature_db.meaning import files
from feature_db.meaning.embedders import DEFAULT, Embedder, embedder
from feature_db.meaning.profile import Profile, profile
from feature_db.records import IndexedSAE
from saekit.errors import ConfigError, DatabaseError

METHOD = "2"
"""Raise it where the same rows and embedder give other arrays. Files of another number are made again, and are not damaged."""


class Embedded(NamedTuple):
    """A profile, and the embedder of its words."""

    profile: Profile
    embedder: Embedder

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return self.profile.arrays()

    def texts(self) -> dict[str, str]:
        """What is no array."""
        return {"embedder": self.embedder.name, "method": METHOD}

    def terms(self) -> NDArray[np.int64]:
        """Ids of the words."""
        return self.profile.term_V


class Profiles(Derived[Embedded]):
    """The profile of each dictionary.

    Args:
        reading: gives a connection that holds a read lock.
        features: the rows of their features.
    """

    suffix = files.SUFFIX

    def __init__(self, reading: Reading, features: Features) -> None:
        super().__init__(reading)
        self._features = features

    def write(self, sae: IndexedSAE, name: str = DEFAULT) -> Path:
        """Write the file of a dictionary's profile, unless it exists and is of this embedder; returns its path.

        Raises:
            ConfigError: there is no such embedder.
            StorageFull, WorkspaceError: the file cannot be written.
        """
        path = self.path(sae)
        with self._reading() as db:
            try:
                if self._mapped(db, sae, path).embedder.name == name:
                    return path
            except DatabaseError:
                pass
            self._write(db, path, self._made_by(db, sae, embedder(name)))
        with self._lock:
            self._made.clear()
        return path

    def _computed(self, db: sqlite3.Connection, sae: IndexedSAE) -> Embedded:
        return self._made_by(db, sae, embedder())

    def _made_by(self, db: sqlite3.Connection, sae: IndexedSAE, by: Embedder) -> Embedded:
        return Embedded(profile(db, sae.id, self._features.of(sae), by), by)

    def _computed_again(self, db: sqlite3.Connection, sae: IndexedSAE, texts: dict[str, str]) -> Embedded | str:
        if texts.get("method") != METHOD:
            return "an earlier version of saekit made it; `saekit index` makes it again"
        try:
            by = embedder(texts.get("embedder", DEFAULT))
        except ConfigError as error:
            return str(error)
        return self._made_by(db, sae, by)

    def _from_file(self, path: Path, sae: IndexedSAE) -> tuple[Embedded, dict[str, str]]:
        found, texts = files.mapped(path, sae.n_features)
        if texts.get("method") != METHOD:
            raise DatabaseError(f"The words of features in {path} are of an earlier version.", HINT)
        return Embedded(found, embedder(texts["embedder"])), texts
