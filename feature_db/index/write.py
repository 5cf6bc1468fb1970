"""Puts the features of one dictionary into the database, in one transaction."""

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from feature_db.errors import typed
from feature_db.index.rows import OF_TOKENS, RowBlock
from feature_db.index.terms import Stats
from feature_db.records import StoredFile
from feature_db.store import checksums, connections, schema, set_aside, token_lists, verification
from feature_db.store.tables import add_labels_of, delete_dictionary, delete_orphans, next_id
from saekit import files
from saekit.names.address import Address

_VARIABLES = 900  # values of a statement; some versions of SQLite allow 999
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


class Source(Protocol):
    """The rows of a dictionary, and the tokens and words that they refer to."""

    @property
    def n_live(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    def tokens(self) -> Iterable[tuple[str, int]]: ...  # text and occurrences of each token id
    @property
    def word_texts(self) -> Sequence[str]: ...  # by number; it may grow while the rows are read
    def word(self, item: int) -> tuple[int, str | None]: ...  # occurrences, and the column `pieces`
    def __iter__(self) -> Iterator[RowBlock]: ...


def write(path: Path, entry: Entry, rows: Source) -> None:
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


def _start(path: Path, entry: Entry, rows: Source) -> None:
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


def _extend(path: Path, entry: Entry, rows: Source) -> None:
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


def _transaction(db: sqlite3.Connection, entry: Entry, rows: Source, *, intact: bool = True) -> None:
    if schema.version(db) < schema.VERSION:
        _upgrade(db, entry)
    _begin(db, entry)
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
    finally:
        db.execute("PRAGMA foreign_keys = ON")


def _begin(db: sqlite3.Connection, entry: Entry) -> None:
    """Begin a transaction. References are checked only where rows are replaced: for new rows, that takes half of the time."""
    for references in ("OFF", "ON"):
        db.execute(f"PRAGMA foreign_keys = {references}")
        db.execute("BEGIN IMMEDIATE")
        if references == "ON" or _previous(db, entry) is None:
            return
        db.execute("ROLLBACK")


def _upgrade(db: sqlite3.Connection, entry: Entry) -> None:
    """Bring a database of an earlier version to this one, in a transaction of its own: what it holds stays the same.

    Databases up to version 2 do not say whether the dictionary of a site has a name. If it is the one that is indexed now, it is
    called as that one.
    """
    with schema.upgrading(db):
        schema.upgrade(db)
        place = (str(entry.address.site), str(entry.address.place.writes[0]), entry.fingerprint)
        db.execute("UPDATE sae SET name = ? WHERE site = ? AND site_out = ? AND fingerprint = ?", (entry.address.name, *place))


def _write(db: sqlite3.Connection, entry: Entry, rows: Source) -> int:
    corpus = _corpus(db, entry, rows)
    sae = _sae(db, entry, corpus, rows.n_live)
    terms = _Terms(db, corpus, rows)
    _features(db, sae, rows, terms)
    terms.index()
    set_aside.bring_back(db, sae, entry.fingerprint)
    set_aside.share(db, sae, entry.fingerprint)
    set_aside.bring_all_back(db)
    delete_orphans(db)
    return sae


def _corpus(db: sqlite3.Connection, entry: Entry, rows: Source) -> int:
    found = db.execute("SELECT id FROM corpus WHERE key = ?", (entry.corpus_key,)).fetchone()
    if found:
        return found[0]
    corpus = next_id(db, "corpus")
    text = json.dumps(entry.corpus, sort_keys=True, default=str)
    db.execute("INSERT INTO corpus VALUES (?, ?, ?, ?, ?)", (corpus, entry.corpus_key, text, rows.n_tokens, rows.n_documents))
    return corpus


class _Terms:
    """Ids of the tokens and words of a corpus. Tokens are inserted at once, words when a row first refers to them."""

    def __init__(self, db: sqlite3.Connection, corpus: int, rows: Source) -> None:
        self._db, self._corpus, self._rows = db, corpus, rows
        self._first = self._next = next_id(db, "term")
        tokens = dict(db.execute("SELECT token, id FROM term WHERE corpus = ? AND kind = 'token'", (corpus,)).fetchall())
        words = dict(db.execute("SELECT text, id FROM term WHERE corpus = ? AND kind = 'word'", (corpus,)).fetchall())
        if tokens:
            self._tokens = np.array([tokens[token] for token in range(len(tokens))], np.int64)
        else:
            counted = enumerate(rows.tokens())
            self._tokens = self._insert([("token", text, token, count, None) for token, (text, count) in counted])
        self._known, self._words = words, np.zeros(0, np.int64)

    def ids(self, role: str, items: NDArray[np.integer]) -> NDArray[np.int64]:
        """Ids of the terms that items stand for in rows of `role`. New words are inserted in the order of their appearance."""
        if role in OF_TOKENS:
            return self._tokens[items]
        texts = self._rows.word_texts
        if len(texts) > len(self._words):
            more = [self._known.get(texts[item], -1) for item in range(len(self._words), len(texts))]
            self._words = np.concatenate([self._words, np.array(more, np.int64)])
        new, first = np.unique(items[self._words[items] < 0], return_index=True)
        if len(new):
            missing = new[np.argsort(first)]
            rows = [("word", texts[item], None, *self._rows.word(item)) for item in missing.tolist()]
            self._words[missing] = self._insert(rows)
        return self._words[items]

    def _insert(self, rows: Sequence[tuple[str, str, int | None, int, str | None]]) -> NDArray[np.int64]:
        """Insert terms: kind, text, token, count and pieces; returns their ids."""
        first, self._next = self._next, self._next + len(rows)
        numbered = [(first + n, self._corpus, *row) for n, row in enumerate(rows)]
        self._db.executemany("INSERT INTO term VALUES (?, ?, ?, ?, ?, ?, ?)", numbered)
        return np.arange(first, self._next)

    def index(self) -> None:
        """Add the new terms to full-text search."""
        self._db.execute("INSERT INTO term_fts(rowid, text) SELECT id, text FROM term WHERE id >= ?", (self._first,))


def _place(entry: Entry) -> tuple[str, str, str]:
    return str(entry.address.site), str(entry.address.place.writes[0]), entry.address.name


def _previous(db: sqlite3.Connection, entry: Entry) -> tuple[int, str] | None:
    """Id and fingerprint of the dictionary that has the address now."""
    return db.execute("SELECT id, fingerprint FROM sae WHERE site = ? AND site_out = ? AND name = ?", _place(entry)).fetchone()


def _sae(db: sqlite3.Connection, entry: Entry, corpus: int, live: int) -> int:
    """Insert the dictionary, in place of the previous one of its address; returns its id."""
    place, old = _place(entry), _previous(db, entry)
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


def _features(db: sqlite3.Connection, sae: int, rows: Source, terms: _Terms) -> None:
    label_id = next_id(db, "label")
    with _uncollected():
        for block in rows:
            numbered = [(schema.feature_id(sae, row.number), row) for row in block.features]
            db.executemany(
                f"INSERT INTO feature (id, sae, number, {', '.join(_COLUMNS)}) VALUES ({', '.join('?' * (3 + len(_COLUMNS)))})",
                [(i, sae, row.number, *(getattr(row, name) for name in _COLUMNS)) for i, row in numbered],
            )
            token_lists.put(db, _token_lists(numbered[0][0], block.stats, terms))
            _insert(db, "partner", [(i, *partner) for i, row in numbered for partner in row.partners])
            _insert(db, "example", [(i, row.windows) for i, row in numbered])
            _insert(db, "class_stat", [(name, f1, i, *rest) for i, row in numbered for name, f1, *rest in row.classes])
            label_id = add_labels_of(db, [(i, row.labels) for i, row in numbered], label_id)
            keywords = [" ".join(label.keywords for label in row.labels) for row in block.features]
            db.executemany(
                "INSERT INTO feature_fts(rowid, label, context) VALUES (?, ?, ?)",
                [(i, words.strip(), row.context) for (i, row), words in zip(numbered, keywords)],
            )


def _token_lists(first: int, stats: Sequence[Stats], terms: _Terms) -> list[tuple[int, int, bytes]]:
    """Rows of `token_list` in the order of their key; `first` is the id of the first feature of the block."""
    found: list[tuple[int, int, bytes]] = []
    for each in stats:
        packed = token_lists.packed(terms.ids(each.role, each.item), each.value, each.score, each.rate, each.peak, each.hits)
        features, starts = np.unique(each.feature, return_index=True)
        for feature, (start, stop) in zip(features.tolist(), pairwise([*starts.tolist(), len(each.feature)])):
            found.append((first + feature, schema.ROLES[each.role], packed.entries(start, stop)))
    return sorted(found)


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows with values of all columns, many with each statement: most of the time is spent on statements."""
    if not rows:
        return
    width = len(rows[0])
    many = max(1, _VARIABLES // width)
    whole = len(rows) // many * many
    one = f"({', '.join('?' * width)})"
    statement = f"INSERT INTO {table} VALUES {', '.join([one] * many)}"
    db.executemany(statement, (tuple(chain.from_iterable(rows[n : n + many])) for n in range(0, whole, many)))
    db.executemany(f"INSERT INTO {table} VALUES {one}", rows[whole:])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the search for unreachable cycles of objects: there are none among rows, and it takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
