"""What a feature database does with measurements of indexed features."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.effects import scores
from feature_db.effects.measured import Measured
from feature_db.records import Causal
from feature_db.store import measurements, read
from feature_db.store.addressed import Addressed, FeatureName
from feature_db.store.edits import Edits
from saekit.names.address import Address
from saekit.names.site import Site


class Measurements:
    """The measurements of a :class:`feature_db.FeatureDB`."""

    _reading: Callable[[], AbstractContextManager[sqlite3.Connection]]
    _addressed: Addressed
    _edits: Edits

    def build_key(self, dictionary: str | Site | Address) -> str:
        """Hash of all inputs of the features of a dictionary.

        Raises:
            UnknownSite: the dictionary is not indexed.
        """
        with self._reading() as db:
            return str(read.build_key(db, self._addressed.one(dictionary).address))

    def measurements(self, dictionary: str | Site | Address) -> dict[str, Any]:
        """The settings of each measurement of a dictionary that was written, by name.

        Raises:
            UnknownSite: the dictionary is not indexed.
            WorkspaceError: another dictionary is there now.
        """
        with self._reading() as db:
            return measurements.settings(db, self._addressed.one(dictionary).id)

    def write_measurement(self, dictionary: str | Site | Address, measured: Measured) -> None:
        """Write a measurement of all features of a dictionary, in place of an earlier one of its name.

        Raises:
            UnknownSite: the dictionary is not indexed.
            WorkspaceError: another dictionary is there now.
            DatabaseError: the file cannot be written.
            StorageFull: the disk is full; the database keeps its previous state.
        """
        sae = self._addressed.one(dictionary)
        with self._edits.transaction() as db:
            measurements.put(db, sae.id, measured)

    def record_checksum(self) -> None:
        """Record the checksum of the file, if it was changed; :meth:`feature_db.FeatureDB.close` does the same."""
        self._edits.end()

    def promoted_tokens(self, dictionary: str | Site | Address, top: int = scores.PROMOTED) -> NDArray[np.int64]:
        """Ids of the `top` tokens that each feature promotes most, (n_features, top); -1 where it promotes fewer."""
        with self._reading() as db:
            sae = self._addressed.one(dictionary)
            return scores.promoted_tokens(db, sae.id, sae.n_features, top=top)

    def input_scores(self, dictionary: str | Site | Address, top: int = scores.PROMOTED) -> NDArray[np.float64]:
        """The input score of each feature, computed from its examples; see :func:`feature_db.effects.scores.input_scores`."""
        with self._reading() as db:
            return scores.input_scores(db, self._addressed.one(dictionary).id, self.promoted_tokens(dictionary, top))

    def causal(self, ref: FeatureName, number: int | None = None) -> Causal | None:
        """What a clamp of a feature was measured to do, and how that compares with the other features of its dictionary.

        Returns:
            None where it was not measured, or the feature has no promoted tokens.

        Raises:
            UnknownRef: there is no such feature.
            WorkspaceError: another dictionary is at its site now.
        """
        with self._reading() as db:
            return read.causal(db, *self._addressed.feature(ref, number))
