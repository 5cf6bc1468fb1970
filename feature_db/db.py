"""The feature database: reads records, searches, and edits labels and lists."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_db.arguments import whole
from feature_db.errors import typed
from feature_db.labels.evidence import Label
from feature_db.records import ActivationStats, FeatureRecord, Hit, IndexedSAE
from feature_db.search.lookup import Lookup, Model
from feature_db.search.query import Filter, query_words
from feature_db.search.search import chosen_signals, search
from feature_db.store import current, read, schema, set_aside, stored, vectors, verification
from feature_db.store.connections import Connections
from feature_db.store.edits import Edits
from saekit import files
from saekit.errors import StoreMismatch, UnknownRef, UnknownSite
from saekit.names.ref import Ref
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

FeatureName = Ref | str | tuple[str | Site, int]
"""Ways to name a feature."""


class FeatureDB:
    """The features of one or more dictionaries, in one SQLite file. Use it as a context manager. It is safe to share by threads.

    ::

        with FeatureDB.open("ws/features.sqlite") as db:
            best = db.search("happy")[0]
            record = db.feature(best.ref)

    Args:
        path: the file.
        dictionaries: returns the folders of the dictionaries that read a site. If given, the database refuses to describe
            features of a dictionary that is in none of these folders.
    """

    def __init__(self, path: Path, dictionaries: Callable[[str], Sequence[Path]] | None = None) -> None:
        self.path, self._dictionaries = path, dictionaries
        self._connections = Connections(path)
        self._edits = Edits(path)
        self._current: dict[int, tuple[object, ...]] = {}
        self._end = weakref.finalize(self, _end, self._connections, self._edits)

    @classmethod
    def open(cls, path: str | Path, dictionaries: Callable[[str], Sequence[Path]] | None = None) -> FeatureDB:
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
        return f"FeatureDB({str(self.path)!r}, {', '.join(f'{sae.n_features} features of {sae.site}' for sae in self.saes())})"

    # Contents

    def saes(self) -> list[IndexedSAE]:
        """The dictionaries, by site name."""
        with self._reading() as db:
            return read.saes(db, self.path.parent)

    def holds(self, site: str | Site, key: str) -> bool:
        """Whether the features of `site` are of the build with this key."""
        return self._all("SELECT 1 FROM sae WHERE site = ? AND key = ?", str(site), key) != []

    def vectors(self, site: str | Site) -> NDArray[np.float32]:
        """Decoder directions of a dictionary, (n_features, d_out), memory-mapped.

        Raises:
            UnknownSite: no dictionary is indexed at `site`.
            WorkspaceError: another dictionary is at `site` now.
            DatabaseError: the file is missing or damaged.
        """
        return vectors.mapped(self._sae(site))

    def densities(self, site: str | Site) -> NDArray[np.float64]:
        """Density of each feature of a dictionary, (n_features,): the exact share of the store's ordinary tokens on which it
        fires; 0 for dead ones. :attr:`IndexedSAE.n_tokens` is the number of those tokens.

        Raises:
            UnknownSite: no dictionary is indexed at `site`.
            WorkspaceError: another dictionary is at `site` now.
        """
        with self._reading() as db:
            sae = self._sae(site)
            found = db.execute("SELECT density FROM feature WHERE sae = ? ORDER BY number", (sae.id,))
            return np.array([density for (density,) in stored.rows("the densities", found, stored.REAL)], np.float64)

    def verify(self) -> list[str]:
        """Check every byte of the file and of the decoder directions against their checksums, and check that all parts agree.

        Returns:
            One sentence for each check that was not possible. Empty if everything was checked.

        Raises:
            DatabaseError: something is damaged; the message names it.
        """
        return verification.verify(self.path, self._reading)

    def sealed(self, site: str | Site) -> bool:
        """Whether the file and the directions of `site` match their checksums. False if the file has no checksum but is sound.

        Raises:
            DatabaseError: something is damaged; the message names it.
        """
        return verification.sealed(self.path, self._sae(site), self._reading)

    def check_current(self, site: str | Site | None = None) -> None:
        """Check that the indexed features of `site`, or of all sites, belong to the dictionaries that are there now.

        Raises:
            WorkspaceError: another dictionary is there; the message names the command that indexes it.
        """
        if site is not None:
            self._sae(site)
        else:
            for sae in self.saes():
                self._check(sae)

    def fresh(self, sae: IndexedSAE) -> bool | None:
        """Whether an indexed dictionary is the one that is there now, as far as this shows without loading weights.

        Returns:
            None where only :meth:`check_current` can tell, or where it is unknown where dictionaries are.
        """
        if self._dictionaries is None:
            return None
        with self._reading() as db:
            return current.fresh(read.files(db, sae.id), self._dictionaries(sae.site))

    def set_aside(self) -> dict[str, int]:
        """Number of labels and list entries of dictionaries that are not indexed now, by the dictionary's fingerprint."""
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
            UnknownRef: there is no such feature; the message lists the indexed sites and the range of their feature numbers.
            WorkspaceError: another dictionary is at its site now.
            DatabaseError: its rows are damaged.
        """
        with self._reading() as db:
            return read.record(db, *self._locate(ref, number))

    def stats(self, ref: FeatureName, number: int | None = None) -> ActivationStats:
        """Maximum, mean over all tokens and quantiles of a feature: the units of a steering strength.

        Raises:
            UnknownRef: there is no such feature.
            WorkspaceError: another dictionary is at its site now.
        """
        with self._reading() as db:
            return read.stats(db, *self._locate(ref, number))

    def _locate(self, ref: FeatureName, number: int | None = None) -> tuple[IndexedSAE, int]:
        if isinstance(ref, tuple):
            ref = Ref.feature(*ref)
        elif number is not None:
            ref = Ref.feature(str(ref), whole(number, "number"))
        ref = Ref.parse(ref)
        saes = {sae.site: sae for sae in self.saes()}
        there = ", ".join(f"{sae.site} (0 to {sae.n_features - 1})" for sae in saes.values()) or "none"
        if ref.kind != "feature":
            raise UnknownRef(f"{ref} is no feature.", f"Features here: {there}.")
        sae = saes.get(str(ref.site))
        if sae is None:
            raise UnknownRef(f"{self.path.name} has no features of {ref.site}.", f"It has those of {there}.")
        self._check(sae)
        if ref.unit >= sae.n_features:
            raise UnknownRef(
                f"There is no {ref}: {sae.site} has {sae.n_features} features.", f"Choose one from 0 to {sae.n_features - 1}."
            )
        return sae, ref.unit

    def _sae(self, site: str | Site) -> IndexedSAE:
        saes = self.saes()
        found = [sae for sae in saes if sae.site == str(site)]
        if not found:
            name = str(Site.parse(site))
            found = [sae for sae in saes if sae.site == name]
        if not found:
            there = ", ".join(sae.site for sae in saes) or "none"
            raise UnknownSite(f"{self.path.name} has no features of {site}.", f"It has those of {there}.")
        self._check(found[0])
        return found[0]

    def _check(self, sae: IndexedSAE) -> None:
        """Refuse features of another dictionary than the one that is at their site now."""
        if self._dictionaries is None:
            return
        folders = self._dictionaries(sae.site)
        state = sae.fingerprint, *map(current.signature, folders)
        if self._current.get(sae.id) != state:  # else it was compared already
            with self._reading() as db:
                current.check(sae, read.files(db, sae.id), folders, self.path.parent)
            self._current[sae.id] = state

    # Search

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        site: str | Site | None = None,
        kinds: str | Sequence[str] | None = None,
        density: tuple[float, float] = (0.0, 1.0),
        live: bool = True,
        by: str | Sequence[str] | None = None,
        lm: LanguageModel | None = None,
        sae: SAE | None = None,
    ) -> list[Hit]:
        """Find the k features that match a concept best, the best first. Ties are ordered by site and number.

        Args:
            query: plain words. Other characters are ignored.
            k: number of features.
            site: return only features of this site.
            kinds: return only features of these kinds: word, piece, class, context, output, dense (and dead with `live=False`).
            density: return only features whose density lies in this range.
            live: leave out features that never fired.
            by: only these signals, by their names in :data:`feature_db.search.SIGNALS`: fires_word, peaks, before, context,
                promotes, label, text, deep, suppresses. None: all but suppresses.
            lm, sae: the model and the dictionary at `site`, for the signal deep: features that fire on the query match, too.

        Raises:
            UnknownSite: there are no features of `site`.
            WorkspaceError: another dictionary is now at one of the sites searched.
            StoreMismatch: `sae` is not the dictionary whose features are indexed.
            ConfigError: there is no such signal or kind, `k` is not a whole number from 1, the query is not text or has too
                many words.
            DatabaseError: the file is damaged.
        """
        k, words, signals = whole(k, "k", least=1), query_words(query), chosen_signals(by)
        place = site if site is not None else sae.cfg.site if sae is not None else None
        saes = [self._sae(place)] if place is not None else self.saes()
        chosen = Filter([each.id for each in saes], [kinds] if isinstance(kinds, str) else kinds, density, live)
        if place is None:
            self.check_current()
        if not saes:
            return []
        model = None
        if lm is not None and sae is not None:
            if sae.fingerprint() != saes[0].fingerprint:
                raise StoreMismatch(
                    f"The given dictionary is not the one whose features are indexed at {saes[0].site}.",
                    current.index_again(self.path.parent, saes[0].site),
                )
            model = Model(lm, sae, saes[0])
        with self._reading() as db:
            return search(Lookup(db, chosen, query, model=model), words, k, signals)

    # Labels and lists

    def set_label(self, ref: FeatureName, text: str) -> None:
        """Label a feature by hand. The label is shown before labels by rules, and searches find it. An empty text removes it.

        Raises:
            UnknownRef: there is no such feature.
            ConfigError: the text is no valid Unicode.
            WorkspaceError: another dictionary is at its site now.
            DatabaseError: the file cannot be written.
        """
        sae, number = self._locate(ref)
        self._edits.set_label(schema.feature_id(sae.id, number), text)

    def add_labels(self, ref: FeatureName, labels: Iterable[Label]) -> None:
        """Add labels of a method, such as a language model. Earlier labels of the same method and model are replaced.

        Raises:
            UnknownRef: there is no such feature.
            ConfigError: a text is no valid Unicode.
            WorkspaceError: another dictionary is at its site now.
            DatabaseError: the file cannot be written.
        """
        sae, number = self._locate(ref)
        self._edits.add_labels(schema.feature_id(sae.id, number), list(labels))

    def set_list(self, name: str, refs: Iterable[Ref | str]) -> None:
        """Save an ordered list of features under a name. An empty list removes it.

        Raises:
            UnknownRef: a feature does not exist; nothing is changed.
            ConfigError: the name is no valid Unicode.
            WorkspaceError: another dictionary is at the site of one.
            DatabaseError: the file cannot be written.
        """
        places = [self._locate(ref) for ref in refs]
        self._edits.set_list(name, [schema.feature_id(sae.id, number) for sae, number in places])

    def forget(self, sae: IndexedSAE) -> None:
        """Remove the features of a dictionary. Labels and lists by people are kept: they return when it is indexed again.

        Raises:
            DatabaseError: the file cannot be written.
        """
        self._edits.forget(sae.id, sae.fingerprint)
        files.remove(sae.vectors)

    def lists(self) -> dict[str, list[Ref]]:
        """All lists by name."""
        found: dict[str, list[Ref]] = {}
        for name, site, number in self._all(
            "SELECT name, site, number FROM list JOIN feature ON feature.id = list.feature JOIN sae ON sae.id = feature.sae "
            "ORDER BY name, position"
        ):
            found.setdefault(name, []).append(Ref.feature(site, number))
        return found

    # SQLite

    @property
    def _db(self) -> sqlite3.Connection:
        return self._connections.here

    def _all(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._reading() as db:
            return db.execute(sql, parameters).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The calling thread's connection, inside one transaction: all statements see the same state of the file."""
        with typed(self.path):
            db = self._db
            if db.in_transaction:
                yield db
                return
            db.execute("BEGIN")
            try:
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")  # nothing was written


def _end(connections: Connections, edits: Edits) -> None:
    edits.end()
    connections.close()
