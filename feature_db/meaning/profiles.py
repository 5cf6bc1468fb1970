"""The profiles of the dictionaries of one database, each with the embedder of its words."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays import files as array_files
from feature_db.arrays.derived import Derived, Features, OldFile, Reading
from feature_db.meaning import files
from feature_db.meaning.embedders import DEFAULT, Embedder, embedder
from feature_db.meaning.profile import Profile, profile
from feature_db.records import IndexedSAE
from saekit.errors import ConfigError, DatabaseError


class Embedded(NamedTuple):
    """A profile, and the embedder of its words."""

    profile: Profile
    embedder: Embedder

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return self.profile.arrays()

    def texts(self) -> dict[str, str]:
        """What is no array."""
        return {"embedder": self.embedder.name, "embedder_version": _version(self.embedder)}

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
    method = "3"
    near = frozenset({"vector_VD", "mean_D", "norm_F"})

    def __init__(self, reading: Reading, features: Features) -> None:
        super().__init__(reading)
        self._features = features

    def write(self, sae: IndexedSAE, name: str | None = None) -> Path:
        """Write the file of a dictionary's profile, unless it exists, is sound and is of this embedder; returns its path.

        Args:
            name: the embedder. None: the one of the file that is there, where it can be loaded.

        Raises:
            ConfigError: there is no such embedder, or it cannot be loaded.
            StorageFull, WorkspaceError: the file cannot be written.
        """
        path = self.path(sae)
        with self._reading() as db:
            if name in (None, _name(path)) and self._is_sound(db, sae, path):
                return path
            self._write(db, path, self._computed(db, sae) if name is None else self._made_by(db, sae, embedder(name)))
        with self._lock:
            self._made.clear()
        return path

    def _computed(self, db: sqlite3.Connection, sae: IndexedSAE) -> Embedded:
        path = self.path(sae)
        try:
            by = embedder(_name(path))
        except ConfigError as error:
            self._warn(path, f"{error} The words of features are embedded by {DEFAULT} instead.")
            by = embedder(DEFAULT)
        return self._made_by(db, sae, by)

    def _made_by(self, db: sqlite3.Connection, sae: IndexedSAE, by: Embedder) -> Embedded:
        return Embedded(profile(db, sae.id, self._features.of(sae), by), by)

    def _computed_again(self, db: sqlite3.Connection, sae: IndexedSAE, texts: dict[str, str]) -> Embedded | str:
        try:
            by = embedder(texts.get("embedder", DEFAULT))
        except ConfigError as error:
            return error.what.rstrip(".")
        if texts.get("embedder_version") != _version(by):
            return f"another version of the embedder {by.name} made it"
        return self._made_by(db, sae, by)

    def _from_file(self, path: Path, sae: IndexedSAE) -> tuple[Embedded, dict[str, str]]:
        name = _name(path)
        try:
            by = embedder(name)  # before the version is compared: what cannot be made again is not replaced
        except ConfigError as error:
            raise DatabaseError(
                f"The words of features in {path} are embedded by {name}, and {DEFAULT} is used instead: {error.what}",
                f"{error.hint} Or run `saekit index`, which embeds them by {DEFAULT}.",
            ) from error
        self._current(path, array_files.mapped(path)[1])
        found, texts = files.mapped(path, sae.n_features)
        if texts.get("embedder_version") != _version(by):
            raise OldFile(f"Another version of the embedder {name} made {path}.", array_files.HINT)
        return Embedded(found, by), texts


def _name(path: Path) -> str:
    """The embedder of a file; the default one where the file is missing or cannot be read."""
    try:
        return array_files.mapped(path)[1].get("embedder", DEFAULT)
    except DatabaseError:
        return DEFAULT


def _version(by: Embedder) -> str:
    """The version of an embedder; empty where it has none."""
    return str(getattr(by, "version", ""))
