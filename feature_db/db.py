"""The feature database: records, search, labels and lists of one file."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_db.errors import damaged, typed
from feature_db.labels.rules import HUMAN, HUMAN_RANK, Label
from feature_db.records import ActivationStats, FeatureRecord, Hit, IndexedSAE
from feature_db.search.search import SIGNALS, WEIGHTS, Filter, fired_by_query, search
from feature_db.store import read, schema
from feature_db.store.examples import unpack
from feature_db.store.tables import add_labels, next_id, refresh_fts
from saekit.errors import ConfigError, UnknownRef, UnknownSite

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.objects import Ref
    from saekit.sae import SAE


class FeatureDB:
    """Features of one or more dictionaries in one SQLite file. A context manager; readers do not disturb a build.

    ::

        with FeatureDB.open("ws/features.sqlite") as db:
            best = db.search("happy")[0]
            record = db.feature(best.ref)
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._db = path, connection

    @classmethod
    def open(cls, path: str | Path) -> FeatureDB:
        """The database at `path`.

        Raises:
            DatabaseError: there is none, it is no feature database, it is damaged, or a newer version of saekit wrote it.
        """
        path = Path(path)
        return cls(path, schema.connect(path))

    def __enter__(self) -> FeatureDB:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __repr__(self) -> str:
        return f"FeatureDB({str(self.path)!r}, {', '.join(f'{sae.n_features} features of {sae.site}' for sae in self.saes())})"

    # What is in it

    def saes(self) -> list[IndexedSAE]:
        """The dictionaries, by site name."""
        with typed(self.path):
            return read.saes(self._db, self.path.parent)

    def holds(self, site: str | Site, key: str) -> bool:
        """Whether the features of `site` are of the build with this key."""
        return self._all("SELECT 1 FROM sae WHERE site = ? AND key = ?", str(site), key) != []

    def vectors(self, site: str | Site) -> NDArray[np.float32]:
        """Decoder directions of a dictionary, (n_features, d_out), memory-mapped.

        Raises:
            UnknownSite: there is none at `site`.
            DatabaseError: the file is missing or damaged.
        """
        sae = self._sae(site)
        try:
            array: NDArray[np.float32] = np.load(sae.vectors, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise damaged(f"the decoder directions of {site} ({sae.vectors})", error) from error
        if len(array) != sae.n_features:
            raise damaged(f"the decoder directions of {site}", f"{len(array)} rows for {sae.n_features} features")
        return array

    def densities(self, site: str | Site) -> NDArray[np.float64]:
        """Share of tokens that each feature of a dictionary fires on, (n_features,); 0 for dead ones.

        Raises:
            UnknownSite: there is none at `site`.
        """
        rows = self._all("SELECT density FROM feature WHERE sae = ? ORDER BY number", self._sae(site).id)
        return np.array([density for (density,) in rows], np.float64)

    def verify(self) -> None:
        """Check everything: pages, indices, references, row counts, examples, decoder directions.

        Raises:
            DatabaseError: says what is damaged.
        """
        for check in ("integrity_check", "foreign_key_check"):
            problems = [row for row in self._all(f"PRAGMA {check}") if row != ("ok",)]
            if problems:
                raise damaged(str(self.path), problems[0])
        for table in ("term_fts", "feature_fts"):
            with self._writing():
                self._db.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")
        for sae in self.saes():
            n = self._all("SELECT COUNT(*), COUNT(windows) FROM feature LEFT JOIN example ON feature = id WHERE sae = ?", sae.id)[
                0
            ]
            if n != (sae.n_features, sae.n_features):
                raise damaged(f"the features of {sae.site}", f"{n[0]} rows and {n[1]} examples for {sae.n_features} features")
            for row in self._all("SELECT windows FROM example JOIN feature ON id = feature WHERE sae = ?", sae.id):
                unpack(row[0])
            self.vectors(sae.site)

    # Records

    def feature(self, ref: Ref | str | tuple[str | Site, int], number: int | None = None) -> FeatureRecord:
        """Everything about one feature: `feature(ref)`, its text, or `feature("resid_post.3", 1042)`.

        Raises:
            UnknownRef: there is no such feature; the message names the sites there are and the range of their numbers.
            DatabaseError: its rows are damaged.
        """
        sae, number = self._locate(ref, number)
        with typed(self.path):
            return read.record(self._db, sae, number)

    def stats(self, ref: Ref | str | tuple[str | Site, int], number: int | None = None) -> ActivationStats:
        """Maximum, mean over all tokens and quantiles of a feature: what strengths of a steer are multiples of.

        Raises:
            UnknownRef: there is no such feature.
        """
        sae, number = self._locate(ref, number)
        with typed(self.path):
            return read.stats(self._db, sae, number)

    def _locate(self, ref: Ref | str | tuple[str | Site, int], number: int | None) -> tuple[IndexedSAE, int]:
        from saekit.names.site import Site
        from saekit.objects import Ref

        if isinstance(ref, tuple):
            ref, number = Ref.feature(*ref), None
        elif number is not None:
            assert isinstance(ref, str | Site)
            ref = Ref.feature(ref, number)
        ref = Ref.parse(ref)
        saes = {sae.site: sae for sae in self.saes()}
        there = ", ".join(f"{sae.site} (0 to {sae.n_features - 1})" for sae in saes.values()) or "none"
        if ref.kind != "feature":
            raise UnknownRef(f"{ref} is no feature.", f"Features here: {there}.")
        sae = saes.get(str(ref.site))
        if sae is None:
            raise UnknownRef(f"{self.path.name} has no features of {ref.site}.", f"It has those of {there}.")
        if ref.unit >= sae.n_features:
            raise UnknownRef(
                f"There is no {ref}: {sae.site} has {sae.n_features} features.", f"Choose one from 0 to {sae.n_features - 1}."
            )
        return sae, ref.unit

    def _sae(self, site: str | Site) -> IndexedSAE:
        saes = self.saes()
        found = [sae for sae in saes if sae.site == str(site)]
        if not found:
            from saekit.names.site import Site

            name = str(Site.parse(site))
            found = [sae for sae in saes if sae.site == name]
        if not found:
            there = ", ".join(sae.site for sae in saes) or "none"
            raise UnknownSite(f"{self.path.name} has no features of {site}.", f"It has those of {there}.")
        return found[0]

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
        by: str | Sequence[str] = SIGNALS,
        lm: LanguageModel | None = None,
        sae: SAE | None = None,
    ) -> list[Hit]:
        """The k features that have most to do with a concept, best first; equally good ones by site and number.

        Args:
            query: plain words; anything else in it is ignored.
            k: how many.
            site: only features of this site.
            kinds: only these kinds: word, piece, class, context, output, dense (dead with `live=False`).
            density: only features that fire on a share of tokens within this range.
            live: leave out features that never fired.
            by: only these signals: fires_word, peaks, before, context, promotes, label, text, deep; and, only when named,
                suppresses.
            lm, sae: also run the query through the model and the dictionary at `site`; features that fire there count too.

        Raises:
            UnknownSite: there are no features of `site`.
            ConfigError: there is no such signal.
            DatabaseError: the file is damaged.
        """
        signals = [by] if isinstance(by, str) else by
        if unknown := [signal for signal in signals if signal not in WEIGHTS]:
            raise ConfigError(f"There is no signal {unknown[0]!r} to search by.", f"Choose from {', '.join(WEIGHTS)}.")
        place = site if site is not None else sae.cfg.site if sae is not None else None
        chosen = [self._sae(place)] if place is not None else self.saes()
        if not chosen or k < 1:
            return []
        wanted = Filter(
            saes=[each.id for each in chosen],
            kinds=[kinds] if isinstance(kinds, str) else kinds,
            density=density,
            live=live,
            signals=signals,
        )
        deep = self._deep(lm, sae, chosen[0], query) if lm is not None and sae is not None else ()
        with typed(self.path):
            return search(self._db, query, k, wanted, deep)

    def _deep(self, lm: LanguageModel, sae: SAE, indexed: IndexedSAE, query: str) -> list[tuple[int, float, float]]:
        """Features that the query itself makes fire, weighted by how rarely they do."""
        if sae.cfg.n_latents != indexed.n_features:
            raise UnknownRef(
                f"The dictionary has {sae.cfg.n_latents} features, the database {indexed.n_features} at {indexed.site}."
            )
        found = []
        rarest = math.log(max(indexed.n_tokens, 2))
        for number, value in fired_by_query(lm, sae, indexed.site, query):
            identity = schema.feature_id(indexed.id, number)
            density, largest = self._all("SELECT density, max FROM feature WHERE id = ?", identity)[0]
            if density > 0 and largest > 0:
                share = min(value / largest, 1.0)
                found.append((identity, share * min(math.log(1 / density) / rarest, 1.0), share))
        return found

    # Labels and lists

    def set_label(self, ref: Ref | str | tuple[str | Site, int], text: str) -> None:
        """Label a feature by hand: shown instead of any automatic label and found by searches. An empty text takes it back.

        Raises:
            UnknownRef: there is no such feature.
        """
        sae, number = self._locate(ref, None)
        identity = schema.feature_id(sae.id, number)
        with self._writing():
            self._db.execute("DELETE FROM label WHERE feature = ? AND method = ?", (identity, HUMAN))
            self._add(identity, [Label(HUMAN, text.strip(), HUMAN_RANK, text.strip())] if text.strip() else [])

    def add_labels(self, ref: Ref | str | tuple[str | Site, int], labels: Iterable[Label]) -> None:
        """Add labels that a method gave; those that the same method and model gave before are replaced.

        Raises:
            UnknownRef: there is no such feature.
        """
        sae, number = self._locate(ref, None)
        identity, labels = schema.feature_id(sae.id, number), list(labels)
        with self._writing():
            for method, model in {(label.method, label.model) for label in labels}:
                self._db.execute("DELETE FROM label WHERE feature = ? AND method = ? AND model IS ?", (identity, method, model))
            self._add(identity, labels)

    def _add(self, feature: int, labels: list[Label]) -> None:
        add_labels(self._db, feature, labels, next_id(self._db, "label"))
        refresh_fts(self._db, feature)

    def set_list(self, name: str, refs: Iterable[Ref | str]) -> None:
        """Keep features under a name, in order; an empty list takes it back.

        Raises:
            UnknownRef: one of them does not exist; nothing is changed.
        """
        places = [self._locate(ref, None) for ref in refs]
        with self._writing():
            self._db.execute("DELETE FROM list WHERE name = ?", (name,))
            rows = [(name, i, schema.feature_id(sae.id, number)) for i, (sae, number) in enumerate(places)]
            self._db.executemany("INSERT INTO list(name, position, feature) VALUES (?, ?, ?)", rows)

    def lists(self) -> dict[str, list[Ref]]:
        """All lists by name."""
        from saekit.objects import Ref

        found: dict[str, list[Ref]] = {}
        for name, site, number in self._all(
            "SELECT name, site, number FROM list JOIN feature ON feature.id = list.feature JOIN sae ON sae.id = feature.sae "
            "ORDER BY name, position"
        ):
            found.setdefault(name, []).append(Ref.feature(site, number))
        return found

    # SQLite

    def _all(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with typed(self.path):
            return self._db.execute(sql, parameters).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with typed(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
