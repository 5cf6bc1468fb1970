"""Corpora: documents of text in a fixed order, from files, the Hugging Face hub or memory."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from saekit.activations.corpus.formats import COMPRESSIONS, FORMATS, JsonLine, Row, file_format, is_compressed, read_rows
from saekit.builtin import is_lab
from saekit.errors import ConfigError, CorpusError

SHUFFLE_BUFFER = 10_000
"""Documents of a streamed hub data set among which the next one is drawn when it is shuffled."""


class Corpus(ABC):
    """Documents in a fixed order that can be read again and again.

    Args:
        source: where the documents come from, for messages and records.
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
        shuffle: int | None = None,
    ) -> Corpus:
        """Open the documents of `source`. Nothing is read yet: see :func:`check_corpus`.

        Args:
            source: a file (:func:`.formats.read_rows` lists the formats); a folder of files (every one below it, in the order of
                their names) or one that `datasets` saved; the name of a data set on the hub; or an iterable
                of texts or of records. An iterator, which can be read only once, is read into memory. "lab", "lab:GENRE" and
                "lab:GENRE@SEED" are the documents of the built-in laboratory, whatever files this folder holds; ./lab is a
                folder.
            text_field: field of a record that holds its text.
            split: split of a data set on the hub, of a folder that `datasets` saved with several splits, or of the laboratory
                (train, heldout).
            name: configuration of a data set on the hub ("wikitext-103-v1").
            revision: its branch, tag or commit.
            streaming: read a data set of the hub over the network as needed; False downloads it first.
            shuffle: seed of a random order of the documents; None keeps the order of the source. The order is uniformly random,
                except for a streamed data set of the hub: its files are read in random order, and each document is drawn from
                the next 10,000.

        Raises:
            CorpusError: there is no such file, or the folder holds no file of a known format.
            ConfigError: the laboratory, whose documents are random already, is to be shuffled.
        """
        if isinstance(source, str) and is_lab(source):
            from saekit.activations.corpus.lab import LabCorpus

            if shuffle is not None:
                raise ConfigError(f"The documents of {source} are in random order already.", "Leave shuffle out.")
            return LabCorpus(source, split)
        local = _local(source, text_field, split)
        if local is None:
            return _Hub(str(source), text_field, split, name, revision, streaming, shuffle)
        if shuffle is None:
            return local
        from saekit.activations.corpus.shuffled import ShuffledCorpus

        return ShuffledCorpus(local, shuffle)

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[Any]:
        """Strings or records, from row `start` on.

        Raises:
            CorpusError: a file does not parse, or the hub cannot be reached.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """What tells this corpus from another, independent of where its files are."""

    @property
    def unshuffled(self) -> Corpus:
        """The same documents in the order of the source."""
        return self

    @property
    def size(self) -> int | None:
        """Estimated bytes of all rows, decompressed; None where nobody knows."""
        return None

    def raw_rows(self) -> Iterator[Any]:
        """What :func:`decoded` makes :meth:`rows` of: for readers that skip most rows."""
        return self.rows()

    def documents(self, start: int = 0) -> Iterator[str]:
        """The text of every row from `start` on; "" where a row has none.

        Raises:
            CorpusError: a row has no text field or it holds no text, a file does not parse, or the hub cannot be reached.
        """
        for index, row in enumerate(self.rows(start), start=start):
            yield self.text(row, index)

    def text(self, row: Any, index: int) -> str:
        """The text of one decoded row.

        Args:
            row: as :meth:`rows` gives it.
            index: its number in the source, for messages.

        Raises:
            CorpusError: the row has no text field, or this field holds no text.
        """
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
    """Read up to the first text, so that a bad corpus is found before work begins. A shuffled corpus is read in its own order.

    Raises:
        CorpusError: as :meth:`Corpus.documents` does, or there is no text at all.
    """
    if not any(text for text in corpus.unshuffled.documents()):
        raise CorpusError(f"{corpus.source} holds no text.", "Is it the right file, split and text_field?")


def decoded(row: Any) -> Any:
    """A row of :meth:`Corpus.raw_rows`, decoded.

    Raises:
        CorpusError: a line is not valid JSON.
    """
    return row.decode() if isinstance(row, JsonLine) else row


def _local(source: str | Path | Iterable[Row], text_field: str, split: str) -> Corpus | None:
    """The corpus in a file, a folder or memory; None where `source` can only be the name of a data set on the hub."""
    if not isinstance(source, str | Path):
        return _Rows(source, text_field)
    path = Path(source).expanduser()
    if path.exists():
        return _Files(path, text_field, split)
    if _looks_like_a_path(source):
        raise CorpusError(f"There is no file or folder {str(source)!r}.", "Give one, or the name of a data set on the hub.")
    return None


def _looks_like_a_path(source: str | Path) -> bool:
    text = str(source)
    return (
        isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or file_format(Path(text)) in FORMATS
    )


_EXPANSION = 5  # of compressed text, roughly


class _Files(Corpus):
    def __init__(self, path: Path, text_field: str, split: str) -> None:
        super().__init__(str(path), text_field)
        self.files = [file.absolute() for file in _files(path, split)]  # they are read later, perhaps from another folder

    def raw_rows(self) -> Iterator[Row | JsonLine]:
        return itertools.chain.from_iterable(read_rows(path, self.text_field) for path in self.files)

    def rows(self, start: int = 0) -> Iterator[Row]:
        return map(decoded, itertools.islice(self.raw_rows(), start, None))

    @property
    def size(self) -> int:
        return sum(path.stat().st_size * (_EXPANSION if is_compressed(path) else 1) for path in self.files)

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

    def __init__(
        self,
        source: str,
        text_field: str,
        split: str,
        name: str | None,
        revision: str | None,
        streaming: bool,
        shuffle: int | None = None,
    ) -> None:
        super().__init__(source, text_field)
        self._shuffle = shuffle
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
        data = data.select_columns([self.text_field]) if self.text_field in (data.column_names or ()) else data
        if self._shuffle is None:
            return data
        return data.shuffle(seed=self._shuffle, **({"buffer_size": SHUFFLE_BUFFER} if self.streaming else {}))

    def rows(self, start: int = 0) -> Iterator[Row]:
        data = self._data.skip(start) if start else self._data
        try:
            yield from data
        except Exception as error:
            raise CorpusError(f"Data set {self.source!r} broke off: {error}", "Run the same command again.") from error

    @property
    def unshuffled(self) -> Corpus:
        settings = (self.source, self.text_field, self.split, self.name, self._asked_revision, self.streaming)
        return self if self._shuffle is None else _Hub(*settings)

    def fingerprint(self) -> dict[str, str]:
        facts = {
            "hub": self.source,
            "config": self.name,
            "split": self.split,
            "revision": self.revision,
            "text_field": self.text_field,
            "shuffle": None if self._shuffle is None else str(self._shuffle),
            "shuffle_buffer": str(SHUFFLE_BUFFER) if self._shuffle is not None and self.streaming else None,
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
