"""The feature database: reads records, searches, and edits labels and lists."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.annotations import Annotations
from feature_db.effects.database import Measurements
from feature_db.records import ActivationStats, FeatureRecord, IndexedSAE
from feature_db.search.arrays import Arrays
from feature_db.search.database import Searches
from feature_db.search.table import ColumnCache, Tables
from feature_db.store import read, set_aside, sql, stored, vectors, verification
from feature_db.store.addressed import Addressed, FeatureName, Folders
from feature_db.store.asked import AskedFeatures
from feature_db.store.connections import Connections
from feature_db.store.edits import Edits
from feature_db.store.sql import Table
from saekit import files
from saekit.errors import DatabaseError
from saekit.names.address import Address
from saekit.names.site import Site


class FeatureDB(Searches, Annotations, AskedFeatures, Measurements, Tables):
    """The features of one or more dictionaries, in one SQLite file. Use it as a context manager. It is safe to share by threads.

    ::

        with FeatureDB.open("ws/features.sqlite") as db:
            best = db.search("happy")[0]
            record = db.feature(best.ref)

    Args:
        path: the file.
        dictionaries: returns the folders that a dictionary may be in, given its address (`resid_post.3`, `resid_post.3@gemma`,
            `mlp_in.3->mlp_out.3`). If given, the database refuses to describe features of a dictionary that is in none of them.
    """

    def __init__(self, path: Path, dictionaries: Folders | None = None) -> None:
        self.path = path
        self._connections = Connections(path)
        self._edits = Edits(path)
        self._columns = ColumnCache(path)
        reading = self._connections.reading
        super().__init__(reading, Addressed(path, dictionaries, reading), Arrays.of(reading))
        self._end = weakref.finalize(self, _end, self._connections, self._edits)

    @classmethod
    def open(cls, path: str | Path, dictionaries: Folders | None = None) -> FeatureDB:
        """The database at `path`; for `dictionaries` see :class:`FeatureDB`.

        Raises:
            DatabaseError: the file does not exist, is no feature database, is damaged, has triggers or changed tables, or was
                written by a newer version of saekit.
        """
        database = cls(Path(path), dictionaries)
        database._connections.here  # noqa: B018  (opens the file)
        return database

    def __enter__(self) -> FeatureDB:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads, and record the checksum of the file if labels or lists were changed."""
        self._end()

    def __repr__(self) -> str:
        return (
            f"FeatureDB({str(self.path)!r}, {', '.join(f'{sae.n_features} features of {sae.dictionary}' for sae in self.saes())})"
        )

    # Contents

    def saes(self) -> list[IndexedSAE]:
        """The dictionaries, by address."""
        return self._addressed.all()

    def dictionary(self, address: str | Site | Address) -> IndexedSAE:
        """The dictionary that an address means.

        Raises:
            UnknownSite: no such dictionary is indexed, or the address means several.
            WorkspaceError: another dictionary is there now.
        """
        return self._addressed.one(address)

    def corpus(self, dictionary: IndexedSAE) -> dict[str, Any]:
        """What is recorded of the tokens on which a dictionary was counted: the store's provenance as `store`, and `split`."""
        with self._reading() as db:
            return read.corpus(db, dictionary.id)

    def holds(self, address: Address, key: str) -> bool:
        """Whether the features of a dictionary are of the build with this key."""
        with self._reading() as db:
            return read.build_key(db, address) == key

    def vectors(self, site: str | Site | Address) -> NDArray[np.float32]:
        """Decoder directions of a dictionary, (n_features, d_out), memory-mapped.

        Raises:
            UnknownSite: no such dictionary is indexed.
            WorkspaceError: another dictionary is there now.
            DatabaseError: the file is missing or damaged.
        """
        return vectors.mapped(self._addressed.one(site))

    def write_words(self, dictionary: str | Site | Address, embedder: str | None = None) -> Path:
        """Write the files that searches of a dictionary read; returns the path of the one with the meaning of words.

        `build` calls this. Without the files, the first search writes them.

        Args:
            embedder: `wordllama`, or `sentence-transformers:` and a folder or a name on the hub. None: the one that was chosen
                before, where it can be loaded, else `wordllama`.

        Raises:
            UnknownSite: no such dictionary is indexed.
            ConfigError: there is no such embedder, its package is not installed, or it cannot be loaded.
            StorageFull, WorkspaceError: the file cannot be written.
        """
        sae = self._addressed.one(dictionary)
        self._arrays.features.write(sae)
        return self._arrays.profiles.write(sae, embedder)

    def vector_files(self) -> list[Path]:
        """The files of all dictionaries besides the database: decoder directions, words with their embeddings, and arrays of
        features."""
        return [path for sae in self.saes() for path in (sae.vectors, *self._arrays.paths(sae))]

    def densities(self, site: str | Site | Address) -> NDArray[np.float64]:
        """Density of each feature of a dictionary, (n_features,): the exact share of the store's ordinary tokens on which it
        fires; 0 for dead ones. :attr:`IndexedSAE.n_tokens` is the number of those tokens.

        Raises:
            UnknownSite: no such dictionary is indexed.
            WorkspaceError: another dictionary is there now.
        """
        with self._reading() as db:
            sae = self._addressed.one(site)
            found = db.execute("SELECT density FROM feature WHERE sae = ? ORDER BY number", (sae.id,))
            return np.array([density for (density,) in stored.rows("the densities", found, stored.REAL)], np.float64)

    def verify(self) -> list[str]:
        """Check every byte of the file, of the decoder directions and of the words of features, and check that all parts agree.

        Returns:
            One sentence for each check that was not possible. Empty if everything was checked.

        Raises:
            DatabaseError: something is damaged; the message names it.
        """
        remarks = verification.verify(self.path, self._reading)
        for sae in self.saes():
            remarks += self._arrays.features.check(sae) + self._arrays.profiles.check(sae)
        return remarks

    def sealed(self, site: str | Site | Address) -> bool:
        """Whether the file and the directions of `site` match their checksums. False if the file has no checksum but is sound.

        Raises:
            DatabaseError: something is damaged; the message names it.
        """
        return verification.sealed(self.path, self._addressed.one(site), self._reading)

    def check_current(self, site: str | Site | Address | None = None) -> None:
        """Check that the indexed features of one dictionary, or of all, belong to the dictionaries that are there now.

        Raises:
            WorkspaceError: another dictionary is there; the message names the command that indexes it.
        """
        if site is not None:
            self._addressed.one(site)
        else:
            for sae in self.saes():
                self._addressed.check(sae)

    def fresh(self, sae: IndexedSAE) -> bool | None:
        """Whether an indexed dictionary is the one that is there now, as far as this shows without loading weights.

        Returns:
            None where only :meth:`check_current` can tell, or where it is unknown where dictionaries are.
        """
        return self._addressed.fresh(sae)

    def set_aside(self) -> dict[str, int]:
        """Number of labels, notes and list entries of dictionaries that are not indexed now, by the dictionary's fingerprint."""
        with self._reading() as db:
            return set_aside.waiting(db)

    def by_people(self) -> tuple[int, int]:
        """Number of labels by people and models and of list entries, those of dictionaries that are not indexed included."""
        with self._reading() as db:
            return set_aside.by_people(db)

    # Records

    def feature(self, ref: FeatureName, number: int | None = None) -> FeatureRecord:
        """Everything about one feature: `feature(ref)`, its text, or `feature("resid_post.3", 1042)`.

        Raises:
            UnknownRef: there is no such feature; the message lists the indexed dictionaries and their feature numbers.
            WorkspaceError: another dictionary is at its site now.
            DatabaseError: its rows are damaged.
        """
        with self._reading() as db:
            return read.record(db, *self._addressed.feature(ref, number))

    def records(self, dictionary: IndexedSAE, numbers: Iterable[int]) -> list[FeatureRecord]:
        """Everything about some features of a dictionary, all of one state of the database.

        Raises:
            DatabaseError: the dictionary was replaced since `dictionary` was read, or its rows are damaged.
        """
        with self._reading() as db:
            if all(
                sae.id != dictionary.id or sae.fingerprint != dictionary.fingerprint for sae in read.saes(db, self.path.parent)
            ):
                raise DatabaseError(f"{dictionary.dictionary} was indexed anew meanwhile.", "Run the same command again.")
            return [read.record(db, dictionary, number) for number in numbers]

    def stats(self, ref: FeatureName, number: int | None = None) -> ActivationStats:
        """Maximum, mean over all tokens and quantiles of a feature: the units of a steering strength.

        Raises:
            UnknownRef: there is no such feature.
            WorkspaceError: another dictionary is at its site now.
        """
        with self._reading() as db:
            return read.stats(db, *self._addressed.feature(ref, number))

    def sql(self, query: str, *, limit: int = 1000, seconds: float = 10.0) -> Table:
        """The rows of one SELECT on the views.

        They are features, labels, scores, notes, words, classes, examples, histograms, logit_histograms, partners, corpus_labels,
        failures, lists and dictionaries.

        ::

            db.sql("select ref, label from features where kind = 'word' and density < .01").to_dicts()

        The connection cannot write, and the tables themselves cannot be read. `examples.examples`, `histograms.histogram` and
        `labels.scores` are JSON, for `json_extract` and `json_each`.

        Args:
            limit: number of rows.
            seconds: the query is stopped after this time.

        Raises:
            ConfigError: the query cannot be run, or takes longer.
            DatabaseError: the file is damaged.
        """
        return sql.query(self.path, query, limit=limit, seconds=seconds)

    def forget(self, sae: IndexedSAE) -> None:
        """Remove the features of a dictionary. Labels and lists by people are kept: they return when it is indexed again.

        Raises:
            DatabaseError: the file cannot be written.
        """
        arrays = self._arrays.paths(sae)
        self._edits.forget(sae.id, sae.fingerprint)
        files.remove(*({sae.vectors, *arrays} - set(self.vector_files())))

    @property
    def _db(self) -> sqlite3.Connection:
        return self._connections.here


def _end(connections: Connections, edits: Edits) -> None:
    edits.end()
    connections.close()
