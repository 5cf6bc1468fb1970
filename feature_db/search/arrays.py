"""The files that searches map into memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from feature_db.arrays.derived import Features, Reading
from feature_db.meaning.profiles import Profiles
from feature_db.records import IndexedSAE

SUFFIXES = (Features.suffix, Profiles.suffix)
"""Ends of the names of these files."""


class Arrays(NamedTuple):
    """The arrays of all dictionaries of one database."""

    features: Features
    profiles: Profiles

    @classmethod
    def of(cls, reading: Reading) -> Arrays:
        """Those of the database that `reading` gives a connection to."""
        features = Features(reading)
        return cls(features, Profiles(reading, features))

    def paths(self, sae: IndexedSAE) -> list[Path]:
        """Where the files of a dictionary are."""
        return [self.features.path(sae), self.profiles.path(sae)]
