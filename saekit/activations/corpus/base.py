"""Corpora: documents of text in a fixed order that can be read again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from saekit.activations.corpus.documents import Chat, Document, document_of
from saekit.activations.corpus.fields import NAME_FIELD, Fields
from saekit.activations.corpus.formats import JsonLine, Row
from saekit.errors import CorpusError
from saekit.plugins import Registry, resolve

Source = str | Path | Iterable[Row] | Mapping[str, float]


@dataclass(frozen=True)
class CorpusSource:
    """Where documents come from, as a user says it; the fields are the arguments of :meth:`Corpus.open`."""

    source: Source
    text_field: str | Fields = "text"
    split: str = "train"
    name: str | None = None
    revision: str | Sequence[str | None] | None = None
    streaming: bool = True
    shuffle: int | None = None
    where: str | None = None

    @cached_property
    def fields(self) -> Fields:
        """Which fields of a record are read, and which records."""
        fields = self.text_field if isinstance(self.text_field, Fields) else Fields(self.text_field)
        return fields if self.where is None else replace(fields, where=self.where)

    @property
    def options(self) -> frozenset[str]:
        """The names in :data:`OPTIONS` that do not have their defaults."""
        revisions = [self.revision] if self.revision is None or isinstance(self.revision, str) else self.revision
        given = {"split": self.split != "train", "name": self.name is not None, "revision": any(revisions)}
        return frozenset(name for name, is_given in given.items() if is_given)

    def without(self, options: Collection[str]) -> CorpusSource:
        """The same with the defaults of these options."""
        defaults: dict[str, Any] = {name: CorpusSource.__dataclass_fields__[name].default for name in options}
        return replace(self, **defaults)

    def refuse(self, kind: str, *, takes: Collection[str] = ()) -> None:
        """Raise UnusedOptions where an option is given that a source of this kind does not have.

        Args:
            kind: what the source is, as "a local file".
            takes: the options that it has.
        """
        if unused := [name for name in OPTIONS if name in self.options and name not in takes]:
            raise UnusedOptions(f"{self.source} is {kind}: it has", unused)


OPTIONS = {
    "split": ("splits", "--data-split"),
    "name": ("configurations", "--data-config"),
    "revision": ("revisions", "--data-revision"),
}
"""Options that not all kinds of corpora have: argument, what it chooses among, and the name on the command line."""


class UnusedOptions(CorpusError):
    """Options are given that the source does not have.

    Args:
        what: the message, up to what the source does not have.
        names: names in :data:`OPTIONS`.
    """

    def __init__(self, what: str, names: Sequence[str]) -> None:
        nouns, flags = zip(*(OPTIONS[name] for name in names))
        super().__init__(f"{what} no {' and no '.join(nouns)}.", f"Leave out {' and '.join(flags)}.")
        self.names = frozenset(names)


def open_leaving_out(asked: CorpusSource) -> tuple[Corpus, frozenset[str]]:
    """The corpus of a source, and the names of the options that the source does not have, which are left out."""
    try:
        return open_corpus(asked), frozenset()
    except UnusedOptions as error:
        return open_corpus(asked.without(error.names)), error.names


def open_corpus(asked: CorpusSource) -> Corpus:
    """:meth:`Corpus.open` of what a user asks for."""
    return Corpus.open(**{name: getattr(asked, name) for name in CorpusSource.__dataclass_fields__})


Opener = Callable[[CorpusSource], "Corpus | None"]
CORPORA: Registry[Opener | str] = Registry(
    "kind of corpus",
    {
        "mixture": "saekit.activations.corpus.mixture:open_mixture",
        "memory": "saekit.activations.corpus.memory:open_memory",
        "lab": "saekit.activations.corpus.lab:open_lab",
        "saved": "saekit.activations.corpus.saved:open_saved",
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
        text_field: field of a record that holds its text, or what else of a record is read.
    """

    def __init__(self, source: str, text_field: str | Fields = "text") -> None:
        self.source = source
        self.fields = text_field if isinstance(text_field, Fields) else Fields(text_field)

    @property
    def text_field(self) -> str:
        """Field of a record that holds its text."""
        return self.fields.text_field

    @staticmethod
    def open(
        source: Source,
        *,
        text_field: str | Fields = "text",
        split: str = "train",
        name: str | None = None,
        revision: str | Sequence[str | None] | None = None,
        streaming: bool = True,
        shuffle: int | None = None,
        where: str | None = None,
    ) -> Corpus:
        """Open the documents of `source`. Nothing is read yet: see :func:`check_corpus`.

        Args:
            source: a file (:func:`.formats.read_rows` lists the formats); a folder of files (every one below it, in the order of
                their names) or one that `datasets` saved; the name of a data set on the hub; or an iterable
                of texts or of records. An iterator, which can be read only once, is read into memory. "lab", "lab:GENRE" and
                "lab:GENRE@SEED" are the documents of the built-in laboratory, whatever files this folder holds; ./lab is a
                folder. {"A": 0.7, "B": 0.3} is a mixture of such sources (:class:`.mixture.MixtureCorpus`).
            text_field: field of a record that holds its text, chat messages or token ids; "title,body" joins several fields of
                text. See :class:`.fields.Fields`, which also sets what stands between them.
            split: split of a data set on the hub, of a folder that `datasets` saved with several splits, or of the laboratory
                (train, heldout).
            name: configuration of a data set on the hub ("wikitext-103-v1").
            revision: its branch, tag or commit; of a mixture, one for each source.
            streaming: read a data set of the hub over the network as needed; False downloads it first.
            shuffle: seed of a random order of the documents; None keeps the order of the source. The order is uniformly random,
                except for a streamed data set of the hub: its files are read in random order, and each document is drawn from
                the next 10,000.
            where: condition on the rows to read, such as `lang == "en" and len(text) > 100`; see :class:`.where.Condition`.

        Raises:
            CorpusError: there is no such file, or the folder holds no file of a known format; or :data:`CORPORA` has no kind of
                corpus for the source; or a split, a configuration or a revision is given for a source that has none. Sources of a
                mixture ignore those that another source of it has.
            ConfigError: the laboratory, whose documents are random already, is to be shuffled; a condition does not parse; or
                the weights of a mixture are impossible.
        """
        asked = CorpusSource(source, text_field, split, name, revision, streaming, shuffle, where)
        _ = asked.fields
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

    @property
    def count(self) -> int | None:
        """Number of rows; None where they would have to be read to be counted."""
        return None

    def take(self, numbers: Sequence[int]) -> list[Any] | None:
        """The rows with these ascending numbers, decoded; None where rows can be read in order only."""
        return None

    def raw_rows(self) -> Iterator[Any]:
        """What :func:`decoded` makes :meth:`rows` of: for readers that skip most rows."""
        return self.rows()

    @property
    def parts(self) -> Sequence[Corpus]:
        """The corpora that this one mixes; itself, where it is no mixture."""
        return (self,)

    @cached_property
    def first(self) -> Document | None:
        """The first document that is not empty, in the order of the source, or None. Reads up to it."""
        return next((document for document in self.unshuffled.documents() if document), None)

    @property
    def has_chats(self) -> bool:
        """Whether the first document, or that of any part, is a chat."""
        return any(isinstance(part.first, Chat) for part in self.parts)

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The document of every row from `start` on; "" where a row has none, or is not to be read.

        Raises:
            CorpusError: a row has no text field or it holds no text, a file does not parse, or the hub cannot be reached.
        """
        for index, row in enumerate(self.rows(start), start=start):
            yield self.document(row, index)

    def place(self, number: int) -> str:
        """What messages call the document that :meth:`documents` gives at `number`, from 0: the source and the row."""
        return self._row(number)

    def _row(self, index: int) -> str:
        return f"{self.source}, row {index}"

    def texts(self, start: int = 0) -> Iterator[str]:
        """The documents from row `start` on, where only text will do.

        Raises:
            CorpusError: as :meth:`documents` does; or a document is a chat or token ids.
        """
        for document in self.documents(start):
            if not isinstance(document, str):
                raise CorpusError(f"{document.where} holds no text, and only text can be used here.", NAME_FIELD)
            yield document

    def document(self, row: Any, index: int) -> Document:
        """The document of one decoded row: text, a chat or token ids; "" where it has none, or is not to be read.

        Args:
            row: as :meth:`rows` gives it.
            index: its number in the source, for messages.

        Raises:
            CorpusError: the row lacks a field, or the field holds something else than a document.
        """
        where = self._row(index)
        if not self.fields.keeps(row, where):
            return ""
        if isinstance(row, Mapping):
            return document_of(self.fields.value(row, where), row, where)
        return document_of(row, {}, where)


def no_text(corpus: Corpus) -> CorpusError:
    """The error for a corpus without any text."""
    hint = "Check the file, the split (--data-split) and the field that holds the text (--text-field)."
    if corpus.fields.where is not None:
        return CorpusError(
            f"{corpus.source} holds no text in rows with {corpus.fields.where}.", f"{hint[:-1]}, or change --records."
        )
    return CorpusError(f"{corpus.source} holds no text.", hint)


def check_corpus(corpus: Corpus) -> None:
    """Read up to the first document, so that a bad corpus is found before work begins. A shuffled corpus is read in the order
    of its source, and every part of a mixture is read.

    Raises:
        CorpusError: as :meth:`Corpus.documents` does, or there is no text at all.
    """
    for part in corpus.parts:
        if part.first is None:
            raise no_text(part)


def decoded(row: Any) -> Any:
    """A row of :meth:`Corpus.raw_rows`, decoded.

    Raises:
        CorpusError: a line is not valid JSON.
    """
    return row.decode() if isinstance(row, JsonLine) else row
