"""Corpora: documents of text in a fixed order that can be read again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.activations.corpus.formats import JsonLine, Row
from saekit.errors import CorpusError, kind_words
from saekit.plugins import Registry, resolve

_NAME_FIELD = "Name the field that holds the text: --text-field FIELD (in Python: text_field)."


@dataclass(frozen=True)
class CorpusSource:
    """Where documents come from, as a user says it; the fields are the arguments of :meth:`Corpus.open`."""

    source: str | Path | Iterable[Row]
    text_field: str = "text"
    split: str = "train"
    name: str | None = None
    revision: str | None = None
    streaming: bool = True
    shuffle: int | None = None


Opener = Callable[[CorpusSource], "Corpus | None"]
CORPORA: Registry[Opener | str] = Registry(
    "kind of corpus",
    {
        "memory": "saekit.activations.corpus.memory:open_memory",
        "lab": "saekit.activations.corpus.lab:open_lab",
        "files": "saekit.activations.corpus.files:open_files",
        "hub": "saekit.activations.corpus.hub:open_hub",
    },
    error=CorpusError,
)
"""Kinds of corpora. Each row is a function that opens a source of its kind, and returns None for others.

The kinds that users register are asked first, the last one of them first; then these, in this order.
"""
_BUILT_IN = tuple(CORPORA)


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
            CorpusError: there is no such file, or the folder holds no file of a known format; or :data:`CORPORA` has no kind of
                corpus for the source.
            ConfigError: the laboratory, whose documents are random already, is to be shuffled.
        """
        asked = CorpusSource(source, text_field, split, name, revision, streaming, shuffle)
        kinds = [name for name in reversed(list(CORPORA)) if name not in _BUILT_IN]
        for kind in (*kinds, *_BUILT_IN):
            if (corpus := resolve(CORPORA[kind])(asked)) is not None:
                return corpus
        raise CorpusError(f"{source!r} is not a corpus.", "Give a file, a folder, texts, or the name of a data set on the hub.")

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
        """Estimated bytes of all rows, decompressed; None where it is unknown."""
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
                raise CorpusError(f"{self.source}, row {index} has no field {self.text_field!r}; it has {fields}.", _NAME_FIELD)
            row = row[self.text_field]
        if row is None:
            return ""
        if not isinstance(row, str):
            raise CorpusError(
                f"{self.source}, row {index} holds {kind_words(type(row))}, not text.",
                _NAME_FIELD,
            )
        # Half a surrogate pair, as careless JSON has it, is no character: no tokenizer takes it.
        return row if row.isascii() else row.encode("utf-8", "replace").decode("utf-8")


def no_text(corpus: Corpus) -> CorpusError:
    """The error for a corpus without any text."""
    hint = "Check the file, the split (--data-split) and the field that holds the text (--text-field)."
    return CorpusError(f"{corpus.source} holds no text.", hint)


def check_corpus(corpus: Corpus) -> None:
    """Read up to the first text, so that a bad corpus is found before work begins. A shuffled corpus is read in its own order.

    Raises:
        CorpusError: as :meth:`Corpus.documents` does, or there is no text at all.
    """
    if not any(text for text in corpus.unshuffled.documents()):
        raise no_text(corpus)


def decoded(row: Any) -> Any:
    """A row of :meth:`Corpus.raw_rows`, decoded.

    Raises:
        CorpusError: a line is not valid JSON.
    """
    return row.decode() if isinstance(row, JsonLine) else row
