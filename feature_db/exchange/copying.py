"""Copies dictionaries from one feature database to another that has other ids.

It goes by the foreign keys of the tables, so that a table that is added to the schema needs nothing here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any

from feature_db.store import schema, set_aside, token_lists

_OWN = ("role", "corpus", "term", "sae", *set_aside.TABLES)
"""Tables that are copied in their own way, or not at all."""
_LISTED = (
    "SELECT 1 FROM main.list JOIN main.sae ON sae.id = feature >> 24 WHERE sae.fingerprint = theirs.fingerprint "
    "AND feature & 16777215 = theirs.number AND list.name = theirs.name AND list.note = theirs.note"
)
"""SQL: an entry of a list that is there already."""


class Copying:
    """Copies rows of the attached database `second` into the main one.

    Args:
        db: the connection, in a transaction, with foreign keys off: rows come table by table.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._lasts: dict[str, int] = {}

    def add(self, dictionaries: Collection[int]) -> None:
        """Copy the dictionaries with these ids in `second`, with all that refers to them."""
        db = self._db
        for name in ("corpus", "sae", "term"):
            db.execute(f"CREATE TEMP TABLE of_{name} (old INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
        first = self._last("sae") + 1
        db.executemany("INSERT INTO of_sae VALUES (?, ?)", [(old, first + i) for i, old in enumerate(sorted(dictionaries))])
        self._corpora()
        columns = [row[1] for row in db.execute("PRAGMA main.table_info(sae)")]
        new = {"id": "of_sae.new", "corpus": "(SELECT new FROM of_corpus WHERE old = corpus)"}
        chosen = ", ".join(new.get(column, column) for column in columns)
        db.execute(f"INSERT INTO main.sae SELECT {chosen} FROM second.sae JOIN of_sae ON old = id")
        new_terms = dict(db.execute("SELECT old, new FROM of_term").fetchall())
        db.create_function("with_new_terms", 1, lambda entries: token_lists.with_terms(entries, new_terms))
        for table in schema.tables():
            if table not in _OWN:
                self._table(table)
        db.execute(
            f"INSERT INTO main.feature_fts(rowid, label, context) SELECT {_feature('feature_fts.rowid')}, label, context "
            "FROM second.feature_fts WHERE rowid >> 24 IN (SELECT old FROM of_sae)"
        )

    def add_waiting(self) -> None:
        """Copy what is set aside, except what is there already."""
        for table in set_aside.TABLES:
            columns = [row[1] for row in self._db.execute(f"PRAGMA main.table_info({table})") if row[1] != "id"]
            names = ", ".join(columns)
            same = " AND ".join(f"mine.{name} IS theirs.{name}" for name in columns if name != "position")
            there = f"SELECT 1 FROM main.{table} mine WHERE {same}"
            if table == "set_aside_list":
                there += f" UNION ALL {_LISTED}"
            missing = f"SELECT {names} FROM second.{table} theirs WHERE NOT EXISTS ({there}) ORDER BY id"
            self._db.execute(f"INSERT INTO main.{table}({names}) {missing}")

    def renumbered(self) -> list[tuple[int, int]]:
        """(old, new) ids of the dictionaries that were copied."""
        return self._db.execute("SELECT old, new FROM of_sae ORDER BY new").fetchall()

    def _corpora(self) -> None:
        db = self._db
        used = "SELECT corpus FROM second.sae JOIN of_sae ON old = id"
        for corpus, key in db.execute(f"SELECT id, key FROM second.corpus WHERE id IN ({used}) ORDER BY id").fetchall():
            known = db.execute("SELECT id FROM main.corpus WHERE key = ?", (key,)).fetchone()
            if known is None:
                known = db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM main.corpus").fetchone()
                facts = "SELECT ?, key, provenance, n_tokens, n_documents FROM second.corpus WHERE id = ?"
                db.execute(f"INSERT INTO main.corpus {facts}", (known[0], corpus))
            db.execute("INSERT INTO of_corpus VALUES (?, ?)", (corpus, known[0]))
            self._terms(corpus, known[0])

    def _terms(self, old: int, new: int) -> None:
        """Copy the tokens and words of a corpus that the other database lacks."""
        db = self._db
        (last,) = db.execute("SELECT COALESCE(MAX(id), 0) FROM main.term").fetchone()
        for kind, same in (("token", "token"), ("word", "text")):  # each has an index of its own
            db.execute(
                "INSERT INTO of_term SELECT theirs.id, mine.id FROM second.term theirs CROSS JOIN main.term mine "
                f"WHERE theirs.corpus = ? AND theirs.kind = '{kind}' AND mine.corpus = ? AND mine.kind = '{kind}' "
                f"AND mine.{same} = theirs.{same}",
                (old, new),
            )
        db.execute(
            "INSERT INTO of_term SELECT id, ? + ROW_NUMBER() OVER (ORDER BY id) FROM second.term "
            "WHERE corpus = ? AND id NOT IN (SELECT old FROM of_term)",
            (last, old),
        )
        db.execute(
            "INSERT INTO main.term SELECT of_term.new, ?, kind, text, token, count, pieces FROM second.term "
            "JOIN of_term ON old = id WHERE corpus = ? AND of_term.new > ?",
            (new, old, last),
        )
        db.execute("INSERT INTO main.term_fts(rowid, text) SELECT id, text FROM main.term WHERE id > ?", (last,))

    def _table(self, table: str) -> None:
        """Copy the rows of the new dictionaries of one table, with their new ids."""
        db = self._db
        keys = {row[3]: row[2] for row in db.execute(f"PRAGMA main.foreign_key_list({table})")}
        columns = [row[1] for row in db.execute(f"PRAGMA main.table_info({table})")]
        targets = {**keys, "feature": "feature", "id": table}
        chosen = [self._new(column, targets.get(column)) for column in columns]
        chosen = ["with_new_terms(entries)" if column == "entries" else new for column, new in zip(columns, chosen)]
        rows = f"SELECT {', '.join(chosen)} FROM second.{table} WHERE {_belongs(columns, keys)}"
        if table == "list":
            self._list(db.execute(f"{rows} ORDER BY name, position").fetchall(), columns)
        else:
            db.execute(f"INSERT INTO main.{table} {rows}")

    def _new(self, column: str, target: str | None) -> str:
        """SQL of the new value of a column that is or refers to an id of table `target`."""
        new: dict[str, Callable[[str], str]] = {
            "feature": _feature,
            "term": lambda column: f"(SELECT new FROM of_term WHERE old = {column})",
            "sae": lambda column: f"(SELECT new FROM of_sae WHERE old = {column})",
            "role": str,
        }
        if target is None:
            return column
        # Tables with ids of their own: the new rows come after those that are there.
        return new[target](column) if target in new else f"{column} + {self._last(target)}"

    def _last(self, table: str) -> int:
        """The largest id of a table before the first row was copied."""
        if table not in self._lasts:
            self._lasts[table] = self._db.execute(f"SELECT COALESCE(MAX(id), 0) FROM main.{table}").fetchone()[0]
        return self._lasts[table]

    def _list(self, rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> None:
        """Add entries of lists after those of the same name."""
        for row in rows:
            facts = dict(zip(columns, row))
            found = self._db.execute("SELECT COALESCE(MAX(position) + 1, 0) FROM main.list WHERE name = ?", (facts["name"],))
            facts["position"] = found.fetchone()[0]
            self._db.execute(f"INSERT INTO main.list VALUES ({', '.join('?' * len(columns))})", tuple(facts.values()))


def _feature(column: str) -> str:
    """SQL of the new id of a feature."""
    return f"((SELECT new FROM of_sae WHERE old = {column} >> 24) << 24 | ({column} & 16777215))"


def _belongs(columns: Sequence[str], keys: dict[str, str]) -> str:
    """SQL of the condition that a row belongs to a dictionary that is copied."""
    if "sae" in columns:
        return "sae IN (SELECT old FROM of_sae)"
    if "feature" in columns:
        return "feature >> 24 IN (SELECT old FROM of_sae)"
    column, target = next((column, target) for column, target in keys.items() if target not in ("role", "term"))
    return f"{column} IN (SELECT id FROM second.{target} WHERE feature >> 24 IN (SELECT old FROM of_sae))"
