"""What was read of another tool's files, kept in a temporary file until rows are made of it: in any order, of any size."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from feature_db.errors import typed
from saekit.errors import ExchangeError

MOST_TEXTS = 1 << 22
"""Distinct tokens: several times as many as any tokenizer has."""


class StagedExample(NamedTuple):
    """An example as it was read."""

    tokens: list[int]
    """Numbers of token texts, see :attr:`Staging.texts`."""
    values: list[float]
    peak: int
    low: float | None
    """Lower end of its group; -1 for the strongest examples; None if it has no group."""
    high: float | None
    document: int | None
    """Number of the document; None where it is not known: then each example is taken for one."""


class StagedLabel(NamedTuple):
    """A label as it was read."""

    method: str
    model: str | None
    text: str
    scores: dict[str, float]


@dataclass
class StagedFeature:
    """All that was read of one feature."""

    number: int
    facts: dict[str, Any] = field(default_factory=dict)
    """Checked numbers and texts; empty if there was no row for the feature."""
    examples: list[StagedExample] = field(default_factory=list)
    labels: list[StagedLabel] = field(default_factory=list)


class Staging:
    """Features, examples and labels of one dictionary.

    Args:
        path: of the temporary file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(
            "CREATE TABLE feature (number INTEGER PRIMARY KEY, facts TEXT, vector BLOB);"
            "CREATE TABLE example (id INTEGER PRIMARY KEY, number INTEGER, data TEXT);"
            "CREATE TABLE label (id INTEGER PRIMARY KEY, number INTEGER, data TEXT); BEGIN;"
        )
        self.texts: dict[str, int] = {}
        """Token texts and their numbers."""
        self.counts: Counter[int] = Counter()
        """How often each token occurs in the examples."""
        self.documents = 0
        """Documents of the examples, at most."""
        self.left_out: Counter[str] = Counter()
        """Rows that are not used, by the reason."""

    def close(self) -> None:
        """Close the temporary file."""
        self._db.close()

    def token(self, text: str) -> int:
        """The number of a token text."""
        if text not in self.texts and len(self.texts) >= MOST_TEXTS:
            raise ExchangeError(f"The files have more than {MOST_TEXTS:,} distinct tokens.", "Check that they are of one model.")
        return self.texts.setdefault(text, len(self.texts))

    def add_feature(self, number: int, facts: dict[str, Any], vector: Sequence[float]) -> None:
        """Add the facts and the decoder direction (or nothing) of a feature; a second row of a feature is left out."""
        values = (number, json.dumps(facts), array("f", vector).tobytes())
        with typed(self._path):
            done = self._db.execute("INSERT OR IGNORE INTO feature VALUES (?, ?, ?)", values)
        if not done.rowcount:
            self.left_out["feature that is there already"] += 1

    def add_example(self, number: int, example: StagedExample) -> None:
        """Add an example of a feature."""
        self.counts.update(example.tokens)
        if example.document is None:
            example = example._replace(document=self.documents)
        self.documents = max(self.documents, example.document + 1)  # type: ignore[operator]
        with typed(self._path):
            self._db.execute("INSERT INTO example(number, data) VALUES (?, ?)", (number, json.dumps(example)))

    def add_label(self, number: int, label: StagedLabel) -> None:
        """Add a label of a feature."""
        with typed(self._path):
            self._db.execute("INSERT INTO label(number, data) VALUES (?, ?)", (number, json.dumps(label)))

    def ready(self) -> None:
        """Call this when everything is added."""
        with typed(self._path):
            for table in ("example", "label"):
                self._db.execute(f"CREATE INDEX {table}_number ON {table}(number, id)")
            self._db.execute("COMMIT")

    def count(self, table: str) -> int:
        """Number of rows: `feature`, `example` or `label`."""
        return self._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]

    @property
    def last(self) -> int:
        """The largest number of a feature; -1 without features."""
        found = [self._db.execute(f"SELECT MAX(number) FROM {table}").fetchone()[0] for table in ("feature", "example", "label")]
        return max((each for each in found if each is not None), default=-1)

    def labelled(self) -> list[int]:
        """Numbers of the features with a label, ascending."""
        return [number for (number,) in self._db.execute("SELECT DISTINCT number FROM label ORDER BY number")]

    def feature(self, number: int) -> StagedFeature:
        """All that was read of a feature."""
        row = self._db.execute("SELECT facts FROM feature WHERE number = ?", (number,)).fetchone()
        examples, labels = (
            [
                json.loads(data)
                for (data,) in self._db.execute(f"SELECT data FROM {table} WHERE number = ? ORDER BY id", (number,))
            ]
            for table in ("example", "label")
        )
        return StagedFeature(
            number,
            json.loads(row[0]) if row else {},
            [StagedExample(*each) for each in examples],
            [StagedLabel(*each) for each in labels],
        )

    def vector(self, number: int) -> array[float]:
        """The decoder direction of a feature; empty where there is none."""
        row = self._db.execute("SELECT vector FROM feature WHERE number = ?", (number,)).fetchone()
        return array("f", row[0] if row else b"")

    def numbers(self) -> Iterator[int]:
        """Numbers of the features that have a row, ascending."""
        for (number,) in self._db.execute("SELECT number FROM feature ORDER BY number"):
            yield number
