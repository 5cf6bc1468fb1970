"""Which fields of a record are read, and which records."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from saekit.activations.corpus.where import Condition
from saekit.errors import CorpusError, kind_words

TEXT = "text"
OTHERS = ("messages", "conversations", "input_ids")
"""Fields that are read, in this order of preference, from a record without the field `text` where no field is named."""
NAME_FIELD = "Name the field that holds the text: --text-field FIELD (in Python: text_field)."
_MASK = "attention_mask"


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold its text, and which records are read.

    Raises:
        ConfigError: the condition does not parse; see :class:`Condition`.
    """

    text_field: str = TEXT
    """Field that holds the text, chat messages or token ids. Several fields of text, separated by commas, are joined. The
    default is `text`; a record without it is read from `messages`, `conversations` or `input_ids`."""
    separator: str = "\n\n"
    """What stands between fields that are joined."""
    where: str | None = None
    """Condition on the records to read (:class:`Condition`); None reads all."""
    also: tuple[str, ...] = ()
    """Other fields to read where a record has them. Without them, only the columns above are read from a table."""

    def __post_init__(self) -> None:
        _ = self._condition

    @cached_property
    def _condition(self) -> Condition | None:
        return None if self.where is None else Condition(self.where)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The fields of text, in the order in which they are joined."""
        return tuple(name for part in self.text_field.split(",") if (name := part.strip())) or (TEXT,)

    def keeps(self, row: Any, where: str) -> bool:
        """Whether a row is to be read. A text is a record with the one field `text`.

        Raises:
            CorpusError: as :meth:`Condition.holds` does.
        """
        return self._condition is None or self._condition.holds(row if isinstance(row, Mapping) else {TEXT: row}, where)

    def columns(self, available: Collection[str]) -> list[str] | None:
        """The columns of a table that are needed; None for all of them, where one is missing, so that a message can name them."""
        found = self._found(available)
        others = [name for name in self.also if name in available]
        wanted = dict.fromkeys([*found, *(self._condition.names if self._condition else ()), *others])
        if not found or any(name not in available for name in wanted):
            return None
        return [*wanted, *([_MASK] if _MASK in available and "input_ids" in wanted else [])]

    def value(self, row: Mapping[str, Any], where: str) -> Any:
        """What the record holds in the field of text; several fields as one text. None where it holds nothing.

        Raises:
            CorpusError: the record lacks the field, or one of several fields does not hold text.
        """
        found = self._found(row)
        if missing := [name for name in found or self.names if name not in row]:
            fields = ", ".join(map(repr, row))
            raise CorpusError(f"{where} has no field {missing[0]!r}; it has {fields}.", NAME_FIELD)
        if len(found) == 1:
            return row[found[0]]
        parts = {name: row[name] for name in found if row[name] is not None}
        for name, part in parts.items():
            if not isinstance(part, str):
                raise CorpusError(f"{where}, field {name!r} holds {kind_words(type(part))}; only text can be joined.", NAME_FIELD)
        return self.separator.join(filter(None, parts.values())) or None

    def facts(self) -> dict[str, str]:
        """What of this tells one corpus from another."""
        joined = {"separator": self.separator} if len(self.names) > 1 else {}
        return {"text_field": self.text_field, **joined, **({} if self.where is None else {"where": self.where})}

    def _found(self, available: Collection[str]) -> tuple[str, ...]:
        if self.text_field in available:  # a name may contain a comma
            return (self.text_field,)
        if self.names == (TEXT,):
            return next(((name,) for name in OTHERS if name in available), ())
        return self.names
