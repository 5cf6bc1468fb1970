"""Conditions on the rows of a corpus: a small language of comparisons, which never runs code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from saekit.errors import ConfigError, CorpusError

Value = Callable[[Mapping[str, Any]], Any]
_LONGEST = 10_000
_LANGUAGE = (
    'Write comparisons joined by and, or, not, such as: lang == "en" and len(text) > 100. '
    "Known functions: len, lower, int, float; a field of a field is meta.source."
)
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "len": lambda value: 0 if value is None else len(value),
    "lower": lambda value: None if value is None else value.lower(),
    "int": lambda value: None if value is None else int(value),
    "float": lambda value: None if value is None else float(value),
}


class Condition:
    """A condition on a row, such as `lang == "en" and len(text) > 100`.

    Names are fields of the row. There are texts, numbers, True, False, None and lists of these; comparisons (`==`, `<`, `in`,
    ...); `and`, `or`, `not`; the functions `len`, `lower`, `int` and `float`; and fields of fields (`meta.source`). A missing
    value (None) is neither less nor greater than anything, and its length is 0.

    The text is parsed as Python and interpreted here. It is never evaluated by Python, so it cannot do anything else.

    Attributes:
        text: the condition as it was written.
        names: the fields that it reads.

    Raises:
        ConfigError: the text does not parse, or holds something else than the above.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        try:
            if len(text) > _LONGEST:
                raise ValueError("it is too long")
            tree = ast.parse(text.strip(), mode="eval")
            self._value = self._compiled(tree.body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            what = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
            raise ConfigError(f"The condition {text!r:.200} cannot be read: {what}.", _LANGUAGE) from error

    def holds(self, row: Mapping[str, Any], where: str) -> bool:
        """Whether a row is to be read.

        Args:
            row: a record.
            where: what messages call the row.

        Raises:
            CorpusError: the row lacks a field, or a value is of a type that cannot be compared.
        """
        try:
            return bool(self._value(row))
        except _Missing as error:
            fields = ", ".join(map(repr, row))
            raise CorpusError(
                f"{where} has no field {error.args[0]!r} for the condition {self.text!r}; it has {fields}.",
                "Correct the condition (--records).",
            ) from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CorpusError(
                f"{where} does not fit the condition {self.text!r}: {error}.",
                'Convert values in the condition (--records), as in float(score) > 0.5 or lower(lang) == "en".',
            ) from error

    def _compiled(self, node: ast.AST) -> Value:
        match node:
            case ast.BoolOp(op, values):
                parts, every = [self._compiled(each) for each in values], all if isinstance(op, ast.And) else any
                return lambda row: every(part(row) for part in parts)
            case ast.UnaryOp(ast.Not(), operand):
                part = self._compiled(operand)
                return lambda row: not part(row)
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
                return lambda row: -number
            case ast.Compare(left, ops, comparators):
                return self._comparison([self._compiled(each) for each in (left, *comparators)], ops)
            case ast.Call(ast.Name(name), [argument], []) if name in _FUNCTIONS:
                part, function = self._compiled(argument), _FUNCTIONS[name]
                return lambda row: function(part(row))
            case ast.Name(name):
                self.names.append(name)
                return lambda row: _field(row, name)
            case ast.Attribute(value, name):
                part = self._compiled(value)
                return lambda row: _field(part(row), name)
            case ast.Subscript(value, ast.Constant(str() | int() as key)):
                part = self._compiled(value)
                return lambda row: _field(part(row), key)
            case ast.Constant(str() | int() | float() | None as constant):
                return lambda row: constant
            case ast.List(elements) | ast.Tuple(elements) | ast.Set(elements):
                members = [self._compiled(each) for each in elements]
                return lambda row: [member(row) for member in members]
        raise ValueError(f"{ast.unparse(node)} is not part of the language of conditions")

    @staticmethod
    def _comparison(parts: list[Value], ops: list[ast.cmpop]) -> Value:
        if any(type(op) not in _COMPARISONS for op in ops):
            raise ValueError("compare with ==, !=, <, <=, >, >=, in or not in")

        def compare(row: Mapping[str, Any]) -> bool:
            left = parts[0](row)
            for op, part in zip(ops, parts[1:]):
                right = part(row)
                ordered = isinstance(op, _ORDERS)
                if (ordered and (left is None or right is None)) or not _COMPARISONS[type(op)](left, right):
                    return False
                left = right
            return True

        return compare


class _Missing(LookupError):
    """A field that a row lacks."""


def _field(record: Any, name: str | int) -> Any:
    if isinstance(record, Mapping):
        if name not in record:
            raise _Missing(name)
        return record[name]
    if isinstance(record, list | tuple) and isinstance(name, int):
        if not -len(record) <= name < len(record):
            raise _Missing(name)
        return record[name]
    if record is None:
        return None
    raise TypeError(f"{name!r} is asked of {record!r:.40}, which has no fields")
