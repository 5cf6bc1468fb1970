"""Putting the features of one dictionary into the database, in one transaction."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_db.errors import typed
from feature_db.index.rows import OF_TOKENS, FeatureRow, Rows
from feature_db.labels import rules as labels
from feature_db.store import schema
from feature_db.store.tables import add_labels, next_id, refresh_fts
from saekit import files
from saekit.errors import StoreMismatch


@dataclass(frozen=True)
class Entry:
    """What the database says of a dictionary and of the text that it was indexed on."""

    site: str
    site_out: str
    key: str
    """Hash of everything that the rows follow from."""
    fingerprint: str
    model: dict[str, str]
    architecture: str
    n_features: int
    d_out: int
    vectors: str
    corpus_key: str
    corpus: dict[str, Any]


def write(path: Path, entry: Entry, rows: Rows, *, replace: bool = False) -> None:
    """Write a dictionary's rows, in place of those that its site had. The database shows all of it or nothing.

    Labels that people or models wrote, and lists, stay if the dictionary is still the same one.

    Raises:
        StoreMismatch: they would be lost, and `replace` is False.
        StorageFull: no room; the database is as it was.
    """
    if path.exists():
        _transact(schema.connect(path), path, entry, rows, replace)
        return
    files.clean(path.parent)
    with files.temporary_folder(path.parent) as beside:
        _transact(schema.create(beside / path.name), path, entry, rows, replace)
        files.publish(beside / path.name, path)
    files.sync(path.parent)


def _transact(connection: sqlite3.Connection, path: Path, entry: Entry, rows: Rows, replace: bool) -> None:
    """Write everything in one transaction, and close the connection."""
    try:
        with typed(path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                _write(connection, entry, rows, replace)
                connection.execute("ANALYZE")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _write(db: sqlite3.Connection, entry: Entry, rows: Rows, replace: bool) -> None:
    corpus = _corpus(db, entry, rows)
    live = int((rows.accumulators.moments.firing > 0).sum())
    sae, kept = _sae(db, entry, corpus, live, replace)
    terms = _Terms(db, corpus, rows)
    _features(db, sae, rows, terms)
    terms.index()
    _restore(db, kept)
    orphans = "corpus NOT IN (SELECT corpus FROM sae)"
    db.execute(f"INSERT INTO term_fts(term_fts, rowid, text) SELECT 'delete', id, text FROM term WHERE {orphans}")
    db.execute(f"DELETE FROM term WHERE {orphans}")
    db.execute("DELETE FROM corpus WHERE id NOT IN (SELECT corpus FROM sae)")


def _corpus(db: sqlite3.Connection, entry: Entry, rows: Rows) -> int:
    found = db.execute("SELECT id FROM corpus WHERE key = ?", (entry.corpus_key,)).fetchone()
    if found:
        return found[0]
    corpus, a = next_id(db, "corpus"), rows.accumulators
    text = json.dumps(entry.corpus, sort_keys=True, default=str)
    db.execute("INSERT INTO corpus VALUES (?, ?, ?, ?, ?)", (corpus, entry.corpus_key, text, a.n_tokens, a.n_documents))
    return corpus


class _Terms:
    """Ids of the tokens and words of a corpus: all tokens, and those words that some row names, inserted when first asked for."""

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
        """The term that a row of `role` means by its item."""
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
        """Let full-text search see the new ones."""
        self._db.execute("INSERT INTO term_fts(rowid, text) SELECT id, text FROM term WHERE id >= ?", (self._first,))


@dataclass
class _Kept:
    """What a rebuild of the same dictionary does not touch."""

    labels: list[tuple[Any, ...]]
    scores: list[tuple[Any, ...]]
    lists: list[tuple[Any, ...]]


def _sae(db: sqlite3.Connection, entry: Entry, corpus: int, live: int, replace: bool) -> tuple[int, _Kept]:
    """Insert the dictionary, in place of the one that its site had."""
    kept = _Kept([], [], [])
    old = db.execute("SELECT id, fingerprint FROM sae WHERE site = ?", (entry.site,)).fetchone()
    sae = old[0] if old else next_id(db, "sae")
    if old:
        span = (schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1)
        marks = ", ".join("?" * len(labels.AUTOMATIC_METHODS))
        kept.labels = db.execute(
            f"SELECT feature, method, text, keywords, rank, model, prompt, id FROM label "
            f"WHERE feature BETWEEN ? AND ? AND method NOT IN ({marks}) ORDER BY id",
            (*span, *labels.AUTOMATIC_METHODS),
        ).fetchall()
        ids = {row[-1] for row in kept.labels}
        kept.scores = [row for row in db.execute("SELECT * FROM label_score").fetchall() if row[0] in ids]
        kept.lists = db.execute("SELECT name, position, feature, note FROM list WHERE feature BETWEEN ? AND ?", span).fetchall()
        if old[1] != entry.fingerprint:
            if (kept.labels or kept.lists) and not replace:
                raise StoreMismatch(
                    f"The features of another dictionary at {entry.site} have {len(kept.labels)} labels by hand or by a model "
                    f"and {len(kept.lists)} are in lists.",
                    "Keep that database, or build with replace=True to drop them.",
                )
            kept = _Kept([], [], [])
        for table in ("list", "token_stat", "example", "label"):  # scores go with their labels
            db.execute(f"DELETE FROM {table} WHERE feature BETWEEN ? AND ?", span)
        db.execute("DELETE FROM feature_fts WHERE rowid BETWEEN ? AND ?", span)
        db.execute("DELETE FROM feature WHERE id BETWEEN ? AND ?", span)
        db.execute("DELETE FROM sae WHERE id = ?", (sae,))
    values = (
        sae, entry.site, entry.site_out, corpus, entry.key, entry.fingerprint, json.dumps(entry.model, sort_keys=True),
        entry.architecture, entry.n_features, live, entry.d_out, entry.vectors,
    )  # fmt: skip
    db.execute(f"INSERT INTO sae VALUES ({', '.join('?' * len(values))})", values)
    return sae, kept


def _features(db: sqlite3.Connection, sae: int, rows: Rows, terms: _Terms) -> None:
    label_id = next_id(db, "label")
    batch: list[FeatureRow] = []

    def flush() -> None:
        nonlocal label_id
        numbered = [(schema.feature_id(sae, row.number), row) for row in batch]
        db.executemany(
            "INSERT INTO feature VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    i,
                    sae,
                    r.number,
                    r.count,
                    r.density,
                    r.density_low,
                    r.density_high,
                    r.mean,
                    r.second_moment,
                    r.max,
                    r.histogram,
                    r.kind,
                )
                for i, r in numbered
            ],
        )
        stats = []
        for i, row in numbered:
            ranks: dict[str, int] = {}
            for s in row.stats:
                ranks[s.role] = rank = ranks.get(s.role, -1) + 1
                stats.append((i, schema.ROLES[s.role], rank, terms.id(s.role, s.item), s.value, s.rate, s.peak, s.hits, s.score))
        db.executemany("INSERT INTO token_stat VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", stats)
        db.executemany("INSERT INTO example VALUES (?, ?)", [(i, row.windows) for i, row in numbered])
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


def _restore(db: sqlite3.Connection, kept: _Kept) -> None:
    new_id = {row[-1]: next_id(db, "label") + i for i, row in enumerate(kept.labels)}
    db.executemany("INSERT INTO label VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [(new_id[row[-1]], *row[:-1]) for row in kept.labels])
    db.executemany("INSERT INTO label_score VALUES (?, ?, ?, ?, ?, ?)", [(new_id[row[0]], *row[1:]) for row in kept.scores])
    db.executemany("INSERT INTO list VALUES (?, ?, ?, ?)", kept.lists)
    for feature in sorted({row[0] for row in kept.labels}):
        refresh_fts(db, feature)
