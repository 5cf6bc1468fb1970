"""Merges two feature databases into a new one: all dictionaries, labels, lists and notes of both."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_db.db import FeatureDB
from feature_db.errors import typed
from feature_db.exchange.copying import Copying
from feature_db.labels.rules import HUMAN
from feature_db.records import IndexedSAE
from feature_db.store import connections, read, schema, set_aside
from feature_db.store.tables import delete_orphans, rank_label, refresh_label
from saekit import files
from saekit.errors import DatabaseError, Unwritable, shown_path

DATABASE = "features.sqlite"


@dataclass
class Merged:
    """What a merge did. Dictionaries are addresses."""

    kept: list[str] = field(default_factory=list)
    """Of the first database."""
    added: list[str] = field(default_factory=list)
    """Of the second database alone, under the addresses that they have now."""
    same: list[str] = field(default_factory=list)
    """In both; the labels and lists are those of both."""
    conflicts: list[str] = field(default_factory=list)
    """What differed, and what was done about it, as sentences."""
    labels: int = 0
    """Labels by people and models, and notes, that came from the second database."""
    entries: int = 0
    """Entries of lists that came from the second database."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes by name."""
        return dict(vars(self))


def merge(first: str | Path, second: str | Path, folder: str | Path) -> Merged:
    """Merge two databases into `features.sqlite` and `vectors/` of a new folder. Neither of the two is changed.

    A dictionary that both have (the same address and weights) keeps the rows of the first; labels by people and models, lists,
    notes and scores of labels come from both. A dictionary of the second whose address has other weights in the first gets a new
    name. Where both have a label by hand for a feature, both stay and the first is shown. A feature that both have in a list is
    there once, with the notes of both.

    Args:
        first, second: the files.
        folder: to be made; it must not exist, or be empty.

    Raises:
        DatabaseError: one is missing, damaged, or of another version.
        Unwritable, StorageFull: the folder cannot be written, or holds something.
    """
    path, paths = Path(folder).absolute(), (Path(first), Path(second))
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise Unwritable(f"{shown_path(path)} exists.", "Give a folder that does not exist yet.")
    try:
        with files.temporary_folder(path.parent) as temporary:
            inner = temporary / "merged"
            inner.mkdir()
            made, other = inner / DATABASE, temporary / "second.sqlite"
            for source, copy in zip(paths, (made, other)):
                _copy(source, copy)
            with typed(paths[1]), closing(connections.writing(made)) as db, _attached(db, other):
                merged = _Merge(db, *(source.parent for source in paths)).run(inner)
            if not connections.seal(made):
                raise DatabaseError(f"The checksum of {made.name} could not be written.", "Check the disk.")
            with FeatureDB.open(made) as database:  # files of words hold ids of this database
                for sae in database.saes():
                    database.write_words(sae.address)
            if path.exists():
                path.rmdir()
            files.replace(inner, path)
    except OSError as error:
        raise files.unwritable(path, error) from error
    return merged


def _copy(source: Path, copy: Path) -> None:
    """Copy a database as it is at one moment, in the present version."""
    with typed(source), closing(connections.reading(source)) as db, closing(sqlite3.connect(copy)) as into:
        db.backup(into)
    with typed(source), closing(connections.writing(copy)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        with schema.upgrading(db):
            schema.upgrade(db)


@contextmanager
def _attached(db: sqlite3.Connection, other: Path) -> Iterator[None]:
    db.execute("PRAGMA foreign_keys = OFF")  # rows come table by table; all of them are checked at the end
    db.execute("ATTACH ? AS second", (str(other),))
    yield


class _Merge:
    """A merge of the attached database into the main one.

    Args:
        db: a connection to the copy of the first, to which the copy of the second is attached as `second`.
        first, second: the folders of the two databases.
    """

    def __init__(self, db: sqlite3.Connection, first: Path, second: Path) -> None:
        self._db, self._folders = db, (first, second)
        self._merged = Merged()
        self._same: list[tuple[IndexedSAE, IndexedSAE, bool]] = []  # in the first, in the second, whether the rows are the same

    def run(self, folder: Path) -> Merged:
        """Merge in one transaction, and copy the files of all dictionaries to `folder`."""
        db, found = self._db, self._merged
        mine = read.saes(db, self._folders[0])
        with closing(sqlite3.connect(self._path_of("second"), isolation_level=None)) as other:
            theirs = read.saes(other, self._folders[1])
            new = self._settle(other, mine, theirs)
        before = set_aside.by_people(db)
        db.execute("BEGIN IMMEDIATE")
        copying = Copying(db)
        copying.add(new)
        copying.add_waiting()
        joined = set_aside.bring_all_back(db)
        for same in self._same:
            self._measured(*same)
        for _, sae in copying.renumbered():
            (fingerprint,) = db.execute("SELECT fingerprint FROM sae WHERE id = ?", (sae,)).fetchone()
            set_aside.share(db, sae, fingerprint)
        delete_orphans(db)
        broken = db.execute("PRAGMA foreign_key_check").fetchone()
        if broken:
            raise DatabaseError(
                f"The second database refers to a row of {broken[2]} that it lacks.", "Run `saekit verify` on it."
            )
        after = set_aside.by_people(db)
        found.labels, found.entries = after[0] - before[0], after[1] - before[1]
        now = {sae.id: sae for sae in read.saes(db, folder)}
        found.kept = [now[sae.id].dictionary for sae in mine]
        found.added = [now[sae].dictionary for _, sae in copying.renumbered()]
        self._hand_labels(now)
        for feature, name, notes in joined:
            said = " and ".join(map(repr, notes))
            self._conflict(f"{_shown(now, feature)} in the list {name} has the notes {said}: both stay.")
        db.execute("ANALYZE")
        db.execute("COMMIT")
        self._files(folder, mine, self._folders[0])
        self._files(folder, [sae for sae in theirs if sae.id in new], self._folders[1])
        return found

    def _path_of(self, name: str) -> str:
        return next(path for _, each, path in self._db.execute("PRAGMA database_list") if each == name)

    def _settle(self, other: sqlite3.Connection, mine: Sequence[IndexedSAE], theirs: Sequence[IndexedSAE]) -> set[int]:
        """Set aside what people made for dictionaries that both have, and rename those whose address is taken.

        Returns:
            Ids of the dictionaries of the second database that are to be added.
        """
        at = {sae.address: sae for sae in mine}
        names = {(sae.site, sae.site_out, sae.name) for sae in (*mine, *theirs)}
        new = set()
        other.execute("BEGIN")
        for sae in theirs:
            same = at.get(sae.address)
            if same is None:
                new.add(sae.id)
            elif same.fingerprint == sae.fingerprint:
                self._merged.same.append(same.dictionary)
                same_rows = read.build_key(self._db, same.address) == read.build_key(other, sae.address)
                self._same.append((same, sae, same_rows))
                if not same_rows:
                    self._conflict(f"{same.dictionary} has other rows in the second database (other text or settings): left out.")
                set_aside.put(other, sae.id, sae.fingerprint)
            else:
                numbered = (f"{sae.name or 'default'}-{number}" for number in range(2, 1 << 20))
                name = next(name for name in numbered if (sae.site, sae.site_out, name) not in names)
                names.add((sae.site, sae.site_out, name))
                other.execute("UPDATE sae SET name = ? WHERE id = ?", (name, sae.id))
                self._conflict(f"{sae.dictionary} has other weights in the second database: they are called {name}.")
                new.add(sae.id)
        other.execute("COMMIT")
        return new

    def _conflict(self, sentence: str) -> None:
        self._merged.conflicts.append(sentence)

    def _measured(self, mine: IndexedSAE, theirs: IndexedSAE, same_rows: bool) -> None:
        """Take what the first database lacks of a dictionary that both have: scores of labels by rules.

        Labels by people and models come with their scores, and failed requests too (:mod:`feature_db.store.set_aside`).
        """
        db, shift = self._db, schema.feature_id(mine.id, 0) - schema.feature_id(theirs.id, 0)
        span = (schema.feature_id(theirs.id, 0), schema.feature_id(theirs.id + 1, 0) - 1)
        if same_rows:
            lacking = (
                "FROM second.label theirs CROSS JOIN main.label mine ON mine.feature = theirs.feature + ? AND "
                "mine.method = theirs.method AND mine.model IS theirs.model AND mine.text = theirs.text "
                "AND mine.corpus IS theirs.corpus "
                "JOIN second.label_score score ON score.label = theirs.id WHERE theirs.feature BETWEEN ? AND ? "
                "AND NOT EXISTS (SELECT 1 FROM main.label_score WHERE label = mine.id AND metric = score.metric)"
            )
            labels = db.execute(f"SELECT DISTINCT mine.id, mine.feature {lacking}", (shift, *span)).fetchall()
            columns = "metric, value, n, low, high"
            chosen = ", ".join(f"score.{name}" for name in columns.split(", "))
            sql = f"INSERT OR IGNORE INTO main.label_score (label, {columns}) SELECT mine.id, {chosen} {lacking}"
            db.execute(sql, (shift, *span))
            for label, feature in labels:
                rank_label(db, label)
                refresh_label(db, feature)
        sql = (
            "SELECT name FROM second.measurement WHERE sae = ? AND name NOT IN (SELECT name FROM main.measurement WHERE sae = ?)"
        )
        names = [name for (name,) in db.execute(f"{sql} ORDER BY name", (theirs.id, mine.id))]
        if names:
            what = f"{mine.dictionary} was measured in the second database alone ({', '.join(names)}): left out"
            self._conflict(f"{what}; `saekit index` measures it, or give that database first.")

    def _hand_labels(self, saes: dict[int, IndexedSAE]) -> None:
        """Report features with several labels by hand."""
        found = self._db.execute(
            "SELECT feature FROM main.label WHERE method = ? GROUP BY feature HAVING COUNT(DISTINCT text) > 1", (HUMAN,)
        ).fetchall()
        for (feature,) in found:
            texts = self._db.execute(
                "SELECT text FROM main.label WHERE feature = ? AND method = ? ORDER BY rank DESC, id", (feature, HUMAN)
            )
            said = " and ".join(repr(text) for (text,) in texts)
            self._conflict(f"{_shown(saes, feature)} is labelled {said}: both stay, the first is shown.")

    def _files(self, folder: Path, saes: Sequence[IndexedSAE], source: Path) -> None:
        """Copy the files of dictionaries to the same places below the new folder."""
        for sae in saes:
            root, vectors = source.absolute(), Path(os.path.normpath(sae.vectors.absolute()))
            if not vectors.is_relative_to(root):  # a database from elsewhere may name any file
                raise DatabaseError(
                    f"{sae.dictionary} has its directions outside of {shown_path(root)}.", "Do not trust this file."
                )
            target = folder / vectors.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if vectors.is_file():
                shutil.copyfile(vectors, target)
                files.sync(target)
            else:
                self._conflict(f"{sae.dictionary} has no file {vectors.name}: `saekit index` writes it again.")


def _shown(saes: dict[int, IndexedSAE], feature: int) -> str:
    """A feature by its id: its dictionary and its number."""
    return f"{saes[feature // schema.FEATURES_PER_SAE].dictionary}/{feature % schema.FEATURES_PER_SAE}"
