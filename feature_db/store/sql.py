"""SQL queries by people: read-only, on the documented views of views.sql, within limits of rows, time and memory."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from feature_db.arguments import whole
from feature_db.display import rows_html
from feature_db.effects.logits import unpack as unpack_logits
from feature_db.errors import code, typed
from feature_db.records import IndexedSAE
from feature_db.store import connections, read, schema, token_lists
from feature_db.store.examples import TOP, Window, unpack
from feature_db.store.statistics import unpack_histogram
from saekit.errors import ConfigError, DatabaseError
from saekit.pieces import joined

_STEPS = 2000  # of SQLite's machine between looks at the clock
_MAX_QUERY, _MAX_VALUE, _MAX_PATTERN = 1 << 20, 64 << 20, 1000  # bytes
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_FUNCTION)
_FORBIDDEN_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "zeroblob", "randomblob", "edit", "readfile", "writefile"))
_TABLE_FUNCTIONS = frozenset(("json_each", "json_tree"))
_OF_VIEWS = frozenset(("dictionary_of", "name_of", "examples_of", "histogram_of", "logits_of", "entries_of"))
_JSON = frozenset(("examples", "histogram", "scores"))
"""Columns of views that hold JSON."""
_KINDS = {"text": str, "real": float, "integer": int}
"""SQLite's names of types. A column of a view has the first of them that one of its values has."""
_MISTAKES = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
}
"""Results that a query itself causes, not the file."""


class Table(NamedTuple):
    """The result of a query."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    more: bool
    """Whether there are more rows than the limit."""

    def _repr_html_(self) -> str:
        """The rows as a table, for notebooks."""
        return rows_html(self.columns, self.rows, self.more)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Each row by column; bytes as hexadecimal text."""
        return [
            {name: value.hex() if isinstance(value, bytes) else value for name, value in zip(self.columns, row)}
            for row in self.rows
        ]


def query(path: Path, sql: str, *, limit: int = 1000, seconds: float = 10.0) -> Table:
    """Run one SELECT on the views; see :meth:`feature_db.FeatureDB.sql`."""
    limit = whole(limit, "limit", least=1)
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"seconds is {seconds!r:.40}.", "Give a number above 0.")
    if not isinstance(sql, str) or len(sql) > _MAX_QUERY:
        what = f"{len(sql)} characters long" if isinstance(sql, str) else f"{sql!r:.60}, which is not text"
        raise ConfigError(f"The SQL query is {what}.", f"Give a SELECT of up to {_MAX_QUERY} characters.")
    with typed(path), closing(connections.reading(path)) as db:
        failed: list[DatabaseError] = []
        _prepare(db, read.saes(db, path.parent), failed)
        end = time.monotonic() + seconds
        db.set_progress_handler(lambda: int(time.monotonic() > end), _STEPS)
        try:
            cursor = db.execute(sql)
            rows = cursor.fetchmany(min(limit, 1 << 30) + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            if failed:
                raise failed[0] from error
            raise _mistake(error, seconds) from error
        if cursor.description is None:
            raise _mistake(ValueError("there is no statement"), seconds)
        columns = [each[0] for each in cursor.description]
    return Table(columns, rows[:limit], len(rows) > limit)


@contextmanager
def reading_view(
    path: Path, view: str, sae: IndexedSAE, numbers: Sequence[int] | None = None
) -> Iterator[tuple[dict[str, type], Iterator[tuple[Any, ...]]]]:
    """The types of a view's columns, and its rows of one dictionary, read as they are taken.

    Args:
        path: the database.
        view: its name.
        sae: the dictionary.
        numbers: of the features; None: all.

    Raises:
        DatabaseError: the file is damaged.
    """
    with typed(path), closing(connections.reading(path)) as db:
        failed: list[DatabaseError] = []
        db.execute("BEGIN")
        _prepare(db, read.saes(db, path.parent), failed)
        names = [each[0] for each in db.execute(f"SELECT * FROM {view} LIMIT 0").description]
        where, values = _of_dictionary(names, sae, numbers)
        found = ", ".join(f"MAX(typeof({name}) = '{kind}')" for name in names if name not in _JSON for kind in _KINDS)
        held = iter(db.execute(f"SELECT {found} FROM {view} WHERE {where}", values).fetchone())
        kinds: dict[str, type] = dict.fromkeys(names, str)  # a column without a value may be of any type
        for name in names:
            if name not in _JSON:
                has = [next(held) for _ in _KINDS]
                kinds[name] = next((kind for kind, one in zip(_KINDS.values(), has) if one), str)
        try:
            yield kinds, iter(db.execute(f"SELECT * FROM {view} WHERE {where}", values))
        except sqlite3.Error as error:
            raise (failed[0] if failed else error) from error


def _of_dictionary(names: Sequence[str], sae: IndexedSAE, numbers: Sequence[int] | None) -> tuple[str, tuple[Any, ...]]:
    """A condition on the rows of a view, and its values: those of one dictionary, or of some of its features."""
    if "ref" not in names:
        return "dictionary = ?", (sae.dictionary,)
    prefix = f"feature:{sae.dictionary}/"
    if numbers is None:
        return "substr(ref, 1, ?) = ?", (len(prefix), prefix)
    return "ref IN (SELECT value FROM json_each(?))", (json.dumps([f"{prefix}{number}" for number in numbers]),)


def _mistake(error: Exception, seconds: float) -> Exception:
    """The typed error for a mistake in a query; errors about the file pass through."""
    if isinstance(error, sqlite3.Error) and code(error) == sqlite3.SQLITE_INTERRUPT:
        return ConfigError(f"The SQL query took longer than {seconds:g} s.", "Ask for less, or give it more time (--seconds).")
    if isinstance(error, sqlite3.Error) and code(error) not in {0, *_MISTAKES}:
        return error
    said = re.sub(r"\bno such table: (main|temp)\.", "no such table: ", str(error) or type(error).__name__)
    return ConfigError(
        f"The SQL query cannot be run: {said.rstrip('.')}.", f"Write one SELECT on the views {', '.join(views())}."
    )


@cache
def views() -> dict[str, str]:
    """The views by name, with what each holds."""
    found = re.findall(r"-- ([^\n]*)\nCREATE TEMP VIEW (\w+)", _script())
    return {name: what for what, name in found}


@cache
def _script() -> str:
    return resources.files("feature_db.store").joinpath("views.sql").read_text()


def _prepare(db: sqlite3.Connection, saes: list[IndexedSAE], failed: list[DatabaseError]) -> None:
    """Make the functions and views, and forbid everything else from here on.

    Args:
        failed: gets the errors of the functions, which SQLite would replace by one of its own.
    """
    by_id = {sae.id: sae for sae in saes}
    texts: dict[int, dict[int, str]] = {}

    def token_texts(sae: int) -> dict[int, str]:
        if sae not in texts:
            sql = "SELECT token, text FROM main.term WHERE corpus = (SELECT corpus FROM main.sae WHERE id = ?) AND kind = 'token'"
            texts[sae] = dict(db.execute(sql, (sae,)).fetchall())
        return texts[sae]

    def examples_of(sae: int, windows: bytes) -> str:
        known = token_texts(sae)
        return json.dumps([_example(known, window) for window in unpack(windows)], ensure_ascii=False)

    def histogram_of(packed: bytes) -> str:
        found = read.shown(unpack_histogram(packed))
        return json.dumps({"edges": found.edges, "counts": found.counts})

    def logits_of(packed: bytes) -> str:
        found = unpack_logits(packed)
        return json.dumps({"edges": found.edges, "counts": found.counts})

    functions: dict[str, Callable[..., Any]] = {
        "dictionary_of": lambda sae: by_id[sae].dictionary,
        "name_of": lambda sae: by_id[sae].name,
        "examples_of": examples_of,
        "histogram_of": histogram_of,
        "logits_of": logits_of,
        "entries_of": token_lists.to_json,
    }
    for name, function in functions.items():
        db.create_function(name, 2 if function is examples_of else 1, _noting(function, failed), deterministic=True)
    # The tables that a file of an earlier version lacks are in the temporary schema.
    current = schema.version(db) == schema.VERSION
    db.executescript(_script() if current else _script().replace("main.", ""))
    db.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()  # SQLite makes these tables when they are first used
    for sae in saes:
        token_texts(sae.id)
    for name, value in (("LENGTH", _MAX_VALUE), ("SQL_LENGTH", _MAX_QUERY * 4), ("LIKE_PATTERN_LENGTH", _MAX_PATTERN)):
        db.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), value)
    db.text_factory = lambda data: data.decode(errors="replace")
    db.set_authorizer(partial(_authorize, frozenset(views()) | (frozenset() if current else schema.filled_in())))


def _example(texts: Mapping[int, str], window: Window) -> dict[str, Any]:
    """An example as JSON values. Tokens that are one character together are joined, with the value of the strongest."""
    pieces = joined([texts.get(token, "?") for token in window.token_ids.tolist()], window.values.tolist())
    return {
        "bucket": "top" if window.bucket == TOP else f"decile {window.bucket}",
        "document": window.document,
        "position": window.position,
        "peak": next(i for i, piece in enumerate(pieces) if window.peak < piece.stop),
        "tokens": [piece.text for piece in pieces],
        "values": [round(piece.value, 6) for piece in pieces],
    }


def _noting(function: Callable[..., Any], failed: list[DatabaseError]) -> Callable[..., Any]:
    """A function that also adds its errors to `failed`."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except DatabaseError as error:
            failed.append(error)
            raise

    return call


def _authorize(
    readers: frozenset[str], action: int, first: str | None, second: str | None, _: str | None, source: str | None
) -> int:
    """Allow reading the views, and what `readers` read: the views, and those of tables of an earlier version."""
    if action == sqlite3.SQLITE_READ:
        # No column: the query counts rows, which may be those of a subquery, a view or what the view reads.
        allowed = source in readers or first in views() or first in _TABLE_FUNCTIONS or not second
    elif action == sqlite3.SQLITE_FUNCTION:
        name = str(second).casefold()
        allowed = name not in _FORBIDDEN_FUNCTIONS and (source in views() or name not in _OF_VIEWS)
    else:
        allowed = action in _ALLOWED
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
