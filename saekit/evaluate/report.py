"""What every evaluation returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple


class Section(NamedTuple):
    """A report as people read it.

    Attributes:
        title: heading of the table.
        rows: of the table, all with the same columns. Values are texts or numbers.
        summary: sentences that stand below the table.
    """

    title: str
    rows: list[dict[str, Any]]
    summary: list[str]


class Report(ABC):
    """The result of an evaluation: data, and one table with sentences about it.

    The command line prints the table and the sentences, and the page of an evaluation shows them. Both are made from the data as
    `--json` and `reports/` have it, so that a result that was stored can be shown too.
    """

    name: ClassVar[str] = ""
    """Of the evaluation, as its row in the registry has it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The data, as JSON has it."""

    @staticmethod
    @abstractmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """What people read of data that :meth:`to_dict` gave."""

    @property
    def section(self) -> Section:
        """What people read."""
        return self.section_of(self.to_dict())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table."""
        return self.section.rows

    def table(self) -> str:
        """The table as text, columns aligned."""
        rows = [{name: str(value) for name, value in row.items()} for row in self.rows]
        if not rows:
            return "nothing found"
        lines = [dict(zip(rows[0], rows[0])), *rows]
        widths = {name: max(len(line[name]) for line in lines) for name in rows[0]}
        return "\n".join("  ".join(line[name].ljust(width) for name, width in widths.items()).rstrip() for line in lines)


def decimals(value: float | None, places: int = 3) -> str:
    """A number with some decimals; a dash where it was not measured, as in results of earlier versions."""
    return "–" if value is None or math.isnan(value) else f"{value:.{places}f}"


def too_few(missing: Sequence[str], what: str) -> list[str]:
    """The sentence on concepts that cannot be judged; no sentence without such concepts."""
    return [f"too few {what} to judge: {', '.join(missing)}"] if missing else []


@dataclass(frozen=True)
class Table(Report):
    """A report whose data are the table itself: the simplest result of an evaluation of one's own."""

    title: str
    records: list[dict[str, Any]]
    sentences: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The title, the rows and the sentences."""
        return {"title": self.title, "rows": self.records, "summary": self.sentences}

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """What :meth:`to_dict` has."""
        return Section(data["title"], data["rows"], data["summary"])
