"""Folders that `datasets.save_to_disk` wrote."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from saekit.activations.corpus.base import Corpus, CorpusSource
from saekit.activations.corpus.fields import Fields
from saekit.activations.corpus.files import FileCorpus
from saekit.activations.corpus.formats import Row, check_arrow
from saekit.activations.corpus.shuffled import shuffled
from saekit.errors import CorpusError

_BATCH = 1024  # rows that are decoded together


def open_saved(asked: CorpusSource) -> Corpus | None:
    """The corpus of a folder that `datasets` saved; None for other sources.

    Raises:
        CorpusError: the folder has no split of that name, or holds no data.
    """
    if not isinstance(asked.source, str | Path):
        return None
    path = Path(asked.source).expanduser()
    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    asked.refuse("a local folder", takes=("split",) if _has_split(path, asked.split) else ())
    return shuffled(SavedCorpus(path, asked.fields, asked.split), asked.shuffle)


def _has_split(path: Path, split: str) -> bool:
    """Whether a split can be chosen in a folder; a folder with a single data set may record which split it is."""
    if (path / "dataset_dict.json").is_file():
        return True
    with contextlib.suppress(OSError, ValueError):
        return json.loads((path / "state.json").read_text(encoding="utf-8"))["_split"] == split
    return False


class SavedCorpus(FileCorpus):
    """The rows of a data set that `datasets.save_to_disk` wrote, read by `datasets.load_from_disk`.

    The files are mapped into memory, so that rows are read in any order and can be skipped.

    Args:
        path: the folder.
        text_field: field of a record that holds its text, or what else of a record is read.
        split: the split, where the folder holds several.

    Raises:
        CorpusError: the folder has no split of that name, or holds no data.
    """

    def __init__(self, path: Path, text_field: str | Fields, split: str) -> None:
        super().__init__(path, text_field, split)
        self._folder = (path / split if (path / "dataset_dict.json").exists() else path).absolute()

    @cached_property
    def _data(self) -> Any:
        from datasets import load_from_disk

        for file in self.files:
            check_arrow(file)
        with self._named():
            data = load_from_disk(str(self._folder))
            needed = self.fields.columns(data.column_names)
            return (data if needed is None else data.select_columns(needed)).with_format("arrow")

    @property
    def count(self) -> int:
        return len(self._data)

    def take(self, numbers: Sequence[int]) -> list[Row]:
        with self._named():
            return self._data[list(numbers)].to_pylist()

    def raw_rows(self) -> Iterator[Row]:
        return self.rows()

    def rows(self, start: int = 0) -> Iterator[Row]:
        for first in range(start, self.count, _BATCH):
            with self._named():
                records = self._data[first : first + _BATCH].to_pylist()
            yield from records

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors in the block name the folder."""
        try:
            yield
        except Exception as error:  # whatever datasets and arrow raise on damaged files
            raise CorpusError(f"{self._folder} cannot be read: {error}.", "Is it damaged? Save the data set again.") from error
