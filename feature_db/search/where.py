"""Conditions on features, such as `density < .01 and kind = 'word'`, as SQL with parameters and as functions of arrays.

    condition  = clause { "or" clause }
    clause     = term { "and" term }
    term       = "not" term | "(" condition ")" | column operator value | column ["not"] "in" "(" value { "," value } ")"
               | column ["not"] "like" text
    operator   = "<" | "<=" | ">" | ">=" | "=" | "==" | "!=" | "<>"
    value      = number | text in single or double quotes

`like` has SQL's wildcards: `%` is any text, `_` is one character. A missing label is an empty text. `list = 'safety'` is true for
a feature that is in this list among others, `note like '%names%'` for one that has such a note.
"""

from __future__ import annotations

import operator
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays.feature_arrays import FeatureArrays
from feature_db.search.columns import COLUMNS, Column, column
from saekit.errors import ConfigError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))|(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign><=|>=|==|!=|<>|[<>=(),]))"
)
_MAX_CHARACTERS, _MAX_DEPTH = 4096, 50
_OPERATORS = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "=": "=", "==": "=", "!=": "<>", "<>": "<>"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "<>": operator.ne,
}
_EXAMPLE = f"Write one like \"density < .01 and kind = 'word'\". Columns: {', '.join(COLUMNS)}."


@dataclass(frozen=True)
class Columns:
    """Columns of some features of one dictionary, n in all."""

    arrays: FeatureArrays
    numbers: NDArray[np.int64]
    """(n,) numbers of the features."""
    db: sqlite3.Connection

    def __getitem__(self, name: str) -> NDArray[Any]:
        """(n,) values; see :meth:`feature_db.arrays.feature_arrays.FeatureArrays.column`."""
        return self.arrays.column(name, self.numbers)

    def of_kind(self, sql: str, parameters: tuple[object, ...]) -> NDArray[np.bool_]:
        """(n,) whether the kind of each feature fulfils an SQL condition. SQLite decides it, once for each kind."""
        query = f"SELECT {sql} FROM (SELECT ? AS kind) AS feature"
        fulfils = [bool(self.db.execute(query, (*parameters, kind)).fetchone()[0]) for kind in self.arrays.kinds]
        return np.array([*fulfils, False])[self["kind"]]


Test = Callable[[Columns], NDArray[np.bool_]]


class Condition(NamedTuple):
    """A condition on the table `feature`, as SQL, and its parameters."""

    sql: str
    parameters: tuple[object, ...]
    test: Test | None = None
    """The same as a function of arrays; None where it needs a column that arrays do not have."""
    parts: tuple[Condition, ...] = ()
    """Conditions that must all hold, where the condition joins some by `and`."""
    source: str = ""
    """A SELECT, with the same parameters, of features to which all those belong that fulfil the condition, if there is one."""

    @property
    def conjuncts(self) -> tuple[Condition, ...]:
        """Conditions that must all hold: the smallest parts that `and` joins."""
        return tuple(each for part in self.parts for each in part.conjuncts) or (self,)


def condition(text: str) -> Condition:
    """Parse a condition.

    Raises:
        ConfigError: it cannot be read, a column does not exist, or a number is compared with a text.
    """
    if not isinstance(text, str):
        raise ConfigError(f"The condition is {text!r:.60}, which is not text.", _EXAMPLE)
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"The condition has {len(text)} characters; {_MAX_CHARACTERS} are allowed.", _EXAMPLE)
    return _Parser(text).whole()


class _Token(NamedTuple):
    kind: str
    text: str


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0
        self._tokens: list[_Token] = []
        place, end = 0, len(text.rstrip())
        while place < end:
            found = _TOKEN.match(text, place)
            if found is None:
                raise self._wrong(f"at {text[place:].strip()!r:.30}")
            self._tokens.append(_Token(str(found.lastgroup), found[str(found.lastgroup)]))
            place = found.end()

    def whole(self) -> Condition:
        result = self._joined("or", lambda: self._joined("and", self._term))
        if self._at < len(self._tokens):
            raise self._wrong(f"at {self._tokens[self._at].text!r:.30}")
        return result

    def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        sql = f" {word.upper()} ".join(each.sql for each in parts)
        parameters = tuple(value for each in parts for value in each.parameters)
        return Condition(f"({sql})", parameters, _joined_test(word, parts), tuple(parts) if word == "and" else ())

    def _term(self) -> Condition:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong(f"with more than {_MAX_DEPTH} levels")
        if self._take("not"):
            inner = self._term()
            test = inner.test
            result = Condition(f"(NOT {inner.sql})", inner.parameters, None if test is None else lambda of: ~test(of))
        elif self._take("("):
            result = self._joined("or", lambda: self._joined("and", self._term))
            self._need(")")
        else:
            result = self._comparison()
        self._depth -= 1
        return result

    def _comparison(self) -> Condition:
        name = self._next("name", "a column")
        of = column(name)
        if of.any_of:
            return self._any_of(name, of)
        sql = of.sql if of.numeric else f"COALESCE({of.sql}, '')"
        negated = "NOT " if self._take("not") else ""
        if self._take("in"):
            self._need("(")
            values = [self._value(name, of)]
            while self._take(","):
                values.append(self._value(name, of))
            self._need(")")
            among = f"IN ({', '.join('?' * len(values))})"
            test = partial(_among, values, bool(negated))
            return self._leaf(name, f"{sql} {negated}{among}", values, test, "" if negated else among)
        if self._take("like"):
            if of.numeric:
                raise ConfigError(f"The column {name} has numbers, which `like` does not compare.", _EXAMPLE)
            return self._leaf(name, f"{sql} {negated}LIKE ?", [self._value(name, of)], None)
        sign = self._next("sign", "an operator")
        if negated or sign not in _OPERATORS:
            raise self._wrong(f"at {sign!r}")
        compare = _COMPARE[_OPERATORS[sign]]
        value = self._value(name, of)
        among = "= ?" if compare is operator.eq else ""
        return self._leaf(name, f"{sql} {_OPERATORS[sign]} ?", [value], partial(_compared, compare, value), among)

    def _any_of(self, name: str, of: Column) -> Condition:
        """A condition on a column of which a feature can have several values: one that compares is enough, `not` means none."""
        negated = self._take("not")
        if self._take("in"):
            self._need("(")
            values = [self._value(name, of)]
            while self._take(","):
                values.append(self._value(name, of))
            self._need(")")
            compared = f"IN ({', '.join('?' * len(values))})"
        elif self._take("like"):
            values, compared = [self._value(name, of)], "LIKE ?"
        else:
            sign = self._next("sign", "an operator")
            if negated or sign not in _OPERATORS:
                raise self._wrong(f"at {sign!r}")
            negated = _OPERATORS[sign] == "<>"
            values, compared = [self._value(name, of)], "= ?" if negated else f"{_OPERATORS[sign]} ?"
        sql = of.any_of.format(compared)
        return Condition(f"(NOT {sql})" if negated else sql, tuple(values), source="" if negated else of.source.format(compared))

    @staticmethod
    def _leaf(
        name: str, sql: str, values: list[Any], compare: Callable[[Any], NDArray[np.bool_]] | None, among: str = ""
    ) -> Condition:
        """A condition on one column.

        Args:
            compare: the same on an array of numbers.
            among: the comparison, if it is true for these values only.
        """
        of, parameters = column(name), tuple(values)
        if of.in_arrays and not of.numeric:
            return Condition(sql, parameters, lambda columns: columns.of_kind(sql, parameters))
        if of.in_arrays and compare is not None:
            return Condition(sql, parameters, lambda columns: compare(columns[name]))
        return Condition(sql, parameters, source=of.source.format(among) if of.source and among and all(values) else "")

    def _value(self, name: str, of: Column) -> object:
        if self._at == len(self._tokens) or self._tokens[self._at].kind not in ("number", "text"):
            raise self._wrong(f"at {self._here()}: a value belongs there")
        token = self._tokens[self._at]
        if (token.kind == "number") != of.numeric:
            needed = "a number" if of.numeric else "a text in quotes"
            raise ConfigError(f"The column {name} is compared with {token.text:.30}; it needs {needed}.", _EXAMPLE)
        self._at += 1
        if token.kind == "number":
            return float(token.text)
        quote = token.text[0]
        return token.text[1:-1].replace(quote * 2, quote).encode("utf-8", "ignore").decode()

    def _take(self, word: str) -> bool:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        there = token is not None and token.kind in ("name", "sign") and token.text.casefold() == word
        self._at += there
        return there

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise self._wrong(f": {sign!r} is missing")

    def _next(self, kind: str, what: str) -> str:
        if self._at == len(self._tokens) or self._tokens[self._at].kind != kind:
            raise self._wrong(f"at {self._here()}: {what} belongs there")
        self._at += 1
        return self._tokens[self._at - 1].text

    def _here(self) -> str:
        return "its end" if self._at == len(self._tokens) else f"{self._tokens[self._at].text!r:.30}"

    def _wrong(self, where: str) -> ConfigError:
        return ConfigError(f"The condition {self._text!r:.80} cannot be read {where}.", _EXAMPLE)


def _joined_test(word: str, parts: list[Condition]) -> Test | None:
    tests = [part.test for part in parts if part.test is not None]
    join = operator.and_ if word == "and" else operator.or_
    return (lambda of: reduce(join, (test(of) for test in tests))) if len(tests) == len(parts) else None


def _compared(compare: Callable[[Any, Any], NDArray[np.bool_]], value: object, numbers: NDArray[Any]) -> NDArray[np.bool_]:
    return compare(numbers, value)


def _among(values: list[Any], negated: bool, numbers: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isin(numbers, values, invert=negated)
