"""Folders that `datasets.save_to_disk` wrote."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saekit.activations.corpus.base import Corpus, CorpusSource
from saekit.activations.corpus.fields import Fields
from saekit.activations.corpus.files import FileCorpus
from saekit.activations.corpus.formats import Row
from saekit.activations.corpus.shuffled import shuffled
from saekit.errors import CorpusError


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
    return shuffled(SavedCorpus(path, asked.fields, asked.split), asked.shuffle)


class SavedCorpus(FileCorpus):
    """The rows of a data set that `datasets.save_to_disk` wrote, read by `datasets.load_from_disk`.

    The files are mapped into memory, so that rows can be skipped without being read.

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

    def _data(self) -> Any:
        from datasets import load_from_disk

        try:
            data = load_from_disk(str(self._folder))
        except Exception as error:  # whatever datasets and arrow raise on damaged files
            raise CorpusError(f"{self._folder} cannot be read: {error}.", "Is it damaged? Save the data set again.") from error
        needed = self.fields.columns(data.column_names)
        return data if needed is None else data.select_columns(needed)

    def raw_rows(self) -> Iterator[Row]:
        return self.rows()

    def rows(self, start: int = 0) -> Iterator[Row]:
        data = self._data()
        try:
            yield from itertools.islice(data, None) if not start else data.skip(start)
        except CorpusError:
            raise
        except Exception as error:
            raise CorpusError(f"{self._folder} cannot be read: {error}.", "Is it damaged? Save the data set again.") from error
