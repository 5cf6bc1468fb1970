"""Puts the features of one dictionary into the database, in one transaction."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_db.errors import typed
from feature_db.index.rows import OF_TOKENS, FeatureRow, Rows
from feature_db.records import StoredFile
from feature_db.store import checksums, connections, schema, set_aside, verification
from feature_db.store.tables import add_labels, delete_dictionary, delete_orphans, next_id
from saekit import files
from saekit.names.address import Address

# Columns of `feature` after its ids.
_COLUMNS = ("count", "density", "density_low", "density_high", "mean", "second_moment", "max", "histogram", "kind")


@dataclass(frozen=True)
class Entry:
    """A dictionary and the corpus that it was indexed on."""

    address: Address
    key: str
    """Hash of all inputs that determine the rows."""
    fingerprint: str
    model: dict[str, str]
    architecture: str
    n_features: int
    d_out: int
    vectors: str
    files: dict[str, StoredFile]
    """Files that the rows belong to, by role: `vectors`, and the names of :data:`feature_db.store.current.FILES`."""
    corpus_key: str
    corpus: dict[str, Any]


def write(path: Path, entry: Entry, rows: Rows) -> None:
    """Write a dictionary's rows, in place of the previous rows of its address. The database changes completely or not at all.

    Labels that people or models wrote and lists are kept (:mod:`feature_db.store.set_aside`).

    Raises:
        StorageFull: the disk is full; the database keeps its previous state.
        DatabaseError: the database is damaged, locked or not writable.
    """
    if path.exists():
        _extend(path, entry, rows)
    else:
        _start(path, entry, rows)


def _start(path: Path, entry: Entry, rows: Rows) -> None:
    """Write a new database in a temporary folder, and move it to its place when it is complete."""
    try:
        files.clean(path.parent)
        with files.temporary_folder(path.parent) as folder:
            temporary = folder / path.name
            temporary.touch()
            with typed(path):
                db = connections.creating(temporary)
                try:
                    _transaction(db, entry, rows)
                finally:
                    db.close()
            checksums.remove(path)
            files.publish(temporary, path, checksum=False)  # it has a checksum file of its own
            files.sync(path.parent)
    except OSError as error:
        raise files.unwritable(path, error) from error
    connections.seal(path)


def _extend(path: Path, entry: Entry, rows: Rows) -> None:
    """Write into an existing database, in one transaction. Readers are not blocked."""
    sealed = False
    try:
        with typed(path), connections.changing(path) as db:
            state = checksums.state(path)
            sealed = state is checksums.State.MATCHES
            intact = sealed or (state is checksums.State.MISSING and schema.version(db) == schema.VERSION)
            if intact and not sealed:  # a killed process left no checksum
                verification.structure(path, db)
            checksums.remove(path)
            if connections.has_locks(path):
                db.execute("PRAGMA journal_mode = WAL")
            _transaction(db, entry, rows, intact=intact)
            sealed = db.execute("SELECT 1 FROM sae WHERE key = ''").fetchone() is None
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except OSError as error:
        raise files.unwritable(path, error) from error
    finally:
        if sealed:
            connections.seal(path)
        else:
            connections.settle(path)


def _transaction(db: sqlite3.Connection, entry: Entry, rows: Rows, *, intact: bool = True) -> None:
    if schema.version(db) < schema.VERSION:
        _upgrade(db, entry)
    db.execute("BEGIN IMMEDIATE")
    try:
        sae = _write(db, entry, rows)
        if not intact:  # rows of the other dictionaries may be damaged: the next build of each writes its rows again
            db.execute("UPDATE sae SET key = '' WHERE id != ?", (sae,))
        db.execute("ANALYZE")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _upgrade(db: sqlite3.Connection, entry: Entry) -> None:
    """Bring a database of an earlier version to this one, in a transaction of its own: what it holds stays the same.

    Databases up to version 2 do not say whether the dictionary of a site has a name. If it is the one that is indexed now, it is
    called as that one.
    """
    db.execute("PRAGMA foreign_keys = OFF")  # impossible inside a transaction
    db.execute("BEGIN IMMEDIATE")
    try:
        schema.upgrade(db)
        place = (str(entry.address.site), str(entry.address.place.writes[0]), entry.fingerprint)
        db.execute("UPDATE sae SET name = ? WHERE site = ? AND site_out = ? AND fingerprint = ?", (entry.address.name, *place))
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.execute("PRAGMA foreign_keys = ON")


def _write(db: sqlite3.Connection, entry: Entry, rows: Rows) -> int:
    corpus = _corpus(db, entry, rows)
    live = int((rows.accumulators.moments.firing > 0).sum())
    sae = _sae(db, entry, corpus, live)
    terms = _Terms(db, corpus, rows)
    _features(db, sae, rows, terms)
    terms.index()
    set_aside.bring_back(db, sae, entry.fingerprint)
    set_aside.share(db, sae, entry.fingerprint)
    set_aside.bring_all_back(db)
    delete_orphans(db)
    return sae


def _corpus(db: sqlite3.Connection, entry: Entry, rows: Rows) -> int:
    found = db.execute("SELECT id FROM corpus WHERE key = ?", (entry.corpus_key,)).fetchone()
    if found:
        return found[0]
    corpus, a = next_id(db, "corpus"), rows.accumulators
    text = json.dumps(entry.corpus, sort_keys=True, default=str)
    db.execute("INSERT INTO corpus VALUES (?, ?, ?, ?, ?)", (corpus, entry.corpus_key, text, a.n_tokens, a.n_documents))
    return corpus


class _Terms:
    """Ids of the tokens and words of a corpus. Tokens are inserted at once, words when a row first refers to them."""

    def __init__(self, db: sqlite3.Connection, corpus: int, rows: Rows) -> None:
        self._db, self._corpus, self._rows = db, corpus, rows
        self._first = self._next = next_id(db, "term")
        self._pieces = rows.pieces()
        self._tokens: dict[int, int] = dict(
            db.execute("SELECT token, id FROM term WHERE corpus = ? AND kind = 'token'", (corpus,)).fetchall()
        )
        self._words: dict[str, int] = dict(
            db.execute("SELECT text, id FROM term WHERE corpus = ? AND kind = 'word'", (corpus,)).fetchall()
        )
        if not self._tokens:
            for token, (text, count) in enumerate(zip(rows.words.vocabulary.texts, rows.lexicon.token_count.tolist())):
                self._tokens[token] = self._insert("token", text, token, count, None)

    def id(self, role: str, item: int) -> int:
        """Id of the term that `item` stands for in a row of `role`."""
        if role in OF_TOKENS:
            return self._tokens[item]
        text = self._rows.words.texts[item]
        if text not in self._words:
            count = int(self._rows.lexicon.word_count[item])
            self._words[text] = self._insert("word", text, None, count, self._pieces[item])
        return self._words[text]

    def _insert(self, kind: str, text: str, token: int | None, count: int, pieces: str | None) -> int:
        row = (self._next, self._corpus, kind, text, token, count, pieces)
        self._db.execute("INSERT INTO term VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._next += 1
        return row[0]

    def index(self) -> None:
        """Add the new terms to full-text search."""
        self._db.execute("INSERT INTO term_fts(rowid, text) SELECT id, text FROM term WHERE id >= ?", (self._first,))


def _sae(db: sqlite3.Connection, entry: Entry, corpus: int, live: int) -> int:
    """Insert the dictionary, in place of the previous one of its address; returns its id."""
    place = (str(entry.address.site), str(entry.address.place.writes[0]), entry.address.name)
    old = db.execute("SELECT id, fingerprint FROM sae WHERE site = ? AND site_out = ? AND name = ?", place).fetchone()
    sae = old[0] if old else next_id(db, "sae")
    if old:
        set_aside.put(db, sae, old[1])
        delete_dictionary(db, sae)
    values = (
        sae, *place, corpus, entry.key, entry.fingerprint, json.dumps(entry.model, sort_keys=True),
        entry.architecture, entry.n_features, live, entry.d_out, entry.vectors,
    )  # fmt: skip
    db.execute(f"INSERT INTO sae VALUES ({', '.join('?' * len(values))})", values)
    db.executemany(
        "INSERT INTO file VALUES (?, ?, ?, ?, ?)",
        [(sae, role, file.sha256, file.size, file.mtime_ns) for role, file in entry.files.items()],
    )
    return sae


def _features(db: sqlite3.Connection, sae: int, rows: Rows, terms: _Terms) -> None:
    label_id = next_id(db, "label")
    batch: list[FeatureRow] = []

    def flush() -> None:
        nonlocal label_id
        numbered = [(schema.feature_id(sae, row.number), row) for row in batch]
        db.executemany(
            f"INSERT INTO feature (id, sae, number, {', '.join(_COLUMNS)}) VALUES ({', '.join('?' * (3 + len(_COLUMNS)))})",
            [(i, sae, row.number, *(getattr(row, name) for name in _COLUMNS)) for i, row in numbered],
        )
        stats = []
        for i, row in numbered:
            ranks: dict[str, int] = {}
            for s in row.stats:
                ranks[s.role] = rank = ranks.get(s.role, -1) + 1
                stats.append((i, schema.ROLES[s.role], rank, terms.id(s.role, s.item), s.value, s.rate, s.peak, s.hits, s.score))
        db.executemany("INSERT INTO token_stat VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", stats)
        db.executemany(
            "INSERT INTO partner VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(i, *partner) for i, row in numbered for partner in row.partners],
        )
        db.executemany("INSERT INTO example VALUES (?, ?)", [(i, row.windows) for i, row in numbered])
        detected = [(name, f1, i, *rest) for i, row in numbered for name, f1, *rest in row.classes]
        db.executemany("INSERT INTO class_stat VALUES (?, ?, ?, ?, ?)", detected)
        for i, row in numbered:
            label_id = add_labels(db, i, row.labels, label_id)
        keywords = [" ".join(label.keywords for label in row.labels) for row in batch]
        db.executemany(
            "INSERT INTO feature_fts(rowid, label, context) VALUES (?, ?, ?)",
            [(i, words.strip(), row.context) for (i, row), words in zip(numbered, keywords)],
        )
        batch.clear()

    for row in rows:
        batch.append(row)
        if len(batch) == 512:
            flush()
    flush()
