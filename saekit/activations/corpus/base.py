"""Corpora: documents of text in a fixed order, from files, the hub or memory."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from saekit.activations.corpus.formats import COMPRESSIONS, FORMATS, Row, file_format, read_rows
from saekit.builtin import is_lab
from saekit.errors import CorpusError


class Corpus(ABC):
    """Documents in a fixed order that can be read again and again.

    Args:
        source: where they come from, for messages and records.
        text_field: field of a record that holds its text.
    """

    def __init__(self, source: str, text_field: str = "text") -> None:
        self.source, self.text_field = source, text_field

    @staticmethod
    def open(
        source: str | Path | Iterable[Row],
        *,
        text_field: str = "text",
        split: str = "train",
        name: str | None = None,
        revision: str | None = None,
        streaming: bool = True,
    ) -> Corpus:
        """The documents of `source`. Nothing is read yet: see :func:`check_corpus`.

        Args:
            source: a file (formats: :func:`.formats.read_rows`), a folder of them (every one below it,
                in the order of their names) or one that `datasets` saved; the name of a data set on the hub; or an iterable of
                texts or of records. An iterator, which can be read only once, is read into memory. "lab", "lab:GENRE" and
                "lab:GENRE@SEED" are the built-in laboratory's own documents, whatever files lie here; ./lab is a folder.
            text_field: field of a record that holds its text.
            split: split of a data set on the hub, of a folder that `datasets` saved with several, or of the laboratory (train,
                heldout).
            name: configuration of a data set on the hub ("wikitext-103-v1").
            revision: its branch, tag or commit.
            streaming: read it over the network as needed; False downloads it first.

        Raises:
            CorpusError: there is no such file, or the folder holds none of a known format.
        """
        if not isinstance(source, str | Path):
            return _Rows(source, text_field)
        if isinstance(source, str) and is_lab(source):
            from saekit.activations.corpus.lab import LabCorpus

            return LabCorpus(source, split)
        path = Path(source).expanduser()
        if path.exists():
            return _Files(path, text_field, split)
        if _looks_like_a_path(source):
            raise CorpusError(f"There is no file or folder {str(source)!r}.", "Give one, or the name of a data set on the hub.")
        return _Hub(str(source), text_field, split, name, revision, streaming)

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[Any]:
        """Strings or records, from row `start` on."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """What tells this corpus from another, independent of where its files lie."""

    def documents(self, start: int = 0) -> Iterator[str]:
        """The text of every row from `start` on; "" where a row has none.

        Raises:
            CorpusError: a row has no text field or it holds no text, a file does not parse, or the hub cannot be reached.
        """
        for index, row in enumerate(self.rows(start), start=start):
            yield self._text(row, index)

    def _text(self, row: Any, index: int) -> str:
        if isinstance(row, Mapping):
            if self.text_field not in row:
                fields = ", ".join(map(repr, row))
                raise CorpusError(
                    f"{self.source}, row {index} has no field {self.text_field!r}; it has {fields}.", "Name one as text_field."
                )
            row = row[self.text_field]
        if row is None:
            return ""
        if not isinstance(row, str):
            raise CorpusError(
                f"{self.source}, row {index} holds a {type(row).__name__}, not text.",
                "Name another field as text_field.",
            )
        # Half a surrogate pair, as careless JSON has it, is no character: no tokenizer takes it.
        return row if row.isascii() else row.encode("utf-8", "replace").decode("utf-8")


def check_corpus(corpus: Corpus) -> None:
    """Read up to the first text, so that a bad corpus is found before work begins.

    Raises:
        CorpusError: as :meth:`Corpus.documents` does, or there is no text at all.
    """
    if not any(text for text in corpus.documents()):
        raise CorpusError(f"{corpus.source} holds no text.", "Is it the right file, split and text_field?")


def _looks_like_a_path(source: str | Path) -> bool:
    text = str(source)
    return (
        isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or file_format(Path(text)) in FORMATS
    )


class _Files(Corpus):
    def __init__(self, path: Path, text_field: str, split: str) -> None:
        super().__init__(str(path), text_field)
        self.files = _files(path, split)

    def rows(self, start: int = 0) -> Iterator[Row]:
        rows = itertools.chain.from_iterable(read_rows(path, self.text_field) for path in self.files)
        return itertools.islice(rows, start, None)

    def fingerprint(self) -> dict[str, str]:
        return {"sha256": self._digest, "text_field": self.text_field}

    @cached_property
    def _digest(self) -> str:
        digests = []
        for path in self.files:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _files(path: Path, split: str) -> list[Path]:
    formats = FORMATS
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            path = path / split
            if not path.exists():
                splits = ", ".join(sorted(child.name for child in path.parent.iterdir() if child.is_dir()))
                raise CorpusError(f"{path.parent} has no split {split!r}; it has {splits}.")
        if (path / "state.json").exists():  # a folder of datasets.save_to_disk: its .json files are no documents
            formats = (".arrow",)
        found = sorted(child for child in path.rglob("*") if child.is_file() and file_format(child) in formats)
        files = [child for child in found if not any(part.startswith(".") for part in child.relative_to(path).parts)]
    else:
        files = [path] if file_format(path) in formats else []
    if not files:
        what = "holds no file" if path.is_dir() else "is not a file"
        raise CorpusError(
            f"{path} {what} of a known format.", f"Known: {', '.join(FORMATS)}; compressed: {', '.join(COMPRESSIONS)}."
        )
    return files


class _Hub(Corpus):
    """A data set that :func:`datasets.load_dataset` loads."""

    def __init__(self, source: str, text_field: str, split: str, name: str | None, revision: str | None, streaming: bool) -> None:
        super().__init__(source, text_field)
        self.split, self.name, self.streaming, self._asked_revision = split, name, streaming, revision

    @cached_property
    def revision(self) -> str | None:
        """The commit, so that a data set that changes meanwhile is not mixed; what was asked for where the hub cannot say."""
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.source, revision=self._asked_revision).sha
        except Exception:  # offline, private, or a name that load_dataset takes from elsewhere: that gives the better message
            return self._asked_revision

    @cached_property
    def _data(self) -> Any:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

        try:
            data = load_dataset(self.source, self.name, split=self.split, revision=self.revision, streaming=self.streaming)
        except DatasetNotFoundError as error:
            raise CorpusError(
                f"There is neither a file {self.source!r} nor a data set of that name on the hub that you can read.",
                "Check the name; log in if it is private.",
            ) from error
        except ConnectionError as error:
            raise CorpusError(
                f"{self.source!r} is no local file, and the hub cannot be reached.", "Check the network, or give a local file."
            ) from error
        except Exception as error:  # whatever a data set's builder or the network raises
            raise CorpusError(
                f"Data set {self.source!r} cannot be loaded: {error}", "Check its configuration (name) and split."
            ) from error
        # Other columns need not be read where the text is known to be there.
        return data.select_columns([self.text_field]) if self.text_field in (data.column_names or ()) else data

    def rows(self, start: int = 0) -> Iterator[Row]:
        data = self._data.skip(start) if start else self._data
        try:
            yield from data
        except Exception as error:
            raise CorpusError(f"Data set {self.source!r} broke off: {error}", "Run the same command again.") from error

    def fingerprint(self) -> dict[str, str]:
        facts = {
            "hub": self.source,
            "config": self.name,
            "split": self.split,
            "revision": self.revision,
            "text_field": self.text_field,
        }
        return {key: value for key, value in facts.items() if value is not None}


class _Rows(Corpus):
    """Texts or records in memory, or whatever else can be iterated over repeatedly."""

    def __init__(self, rows: Iterable[Row], text_field: str) -> None:
        super().__init__("the given iterable", text_field)
        if isinstance(rows, Mapping | bytes) or not isinstance(rows, Iterable):
            raise CorpusError(
                f"A {type(rows).__name__} is no corpus.", "Give texts or records: one split of a data set, a list, a path."
            )
        self._rows: Iterable[Row] = list(rows) if isinstance(rows, Iterator) else rows

    def rows(self, start: int = 0) -> Iterator[Row]:
        return itertools.islice(self._rows, start, None)

    def fingerprint(self) -> dict[str, str]:
        return {"sha256": self._digest}

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for text in self.documents():
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()
