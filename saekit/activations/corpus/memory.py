"""Corpora in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from saekit.activations.corpus.base import Corpus, CorpusSource
from saekit.activations.corpus.documents import Chat, Document, TokenIds
from saekit.activations.corpus.fields import Fields
from saekit.activations.corpus.formats import Row
from saekit.activations.corpus.shuffled import shuffled
from saekit.errors import CorpusError


def open_memory(asked: CorpusSource) -> Corpus | None:
    """The corpus of an iterable; None where the source is a path or a name."""
    if isinstance(asked.source, str | Path):
        return None
    return shuffled(MemoryCorpus(asked.source, asked.fields), asked.shuffle)


class MemoryCorpus(Corpus):
    """Texts or records in memory, or in anything else that can be iterated over repeatedly."""

    def __init__(self, rows: Iterable[Row], text_field: str | Fields) -> None:
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
        for document in self.documents():
            data = _as_bytes(document)
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def _as_bytes(document: Document) -> bytes:
    if isinstance(document, Chat):
        messages = [{key: value for key, value in message.items() if value is not None} for message in document.messages]
        return json.dumps(messages, sort_keys=True, default=str).encode()
    return document.ids.tobytes() if isinstance(document, TokenIds) else document.encode()
