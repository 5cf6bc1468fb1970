"""The documents of a corpus in a random order, however large the corpus is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from saekit.activations.corpus.base import Corpus, decoded
from saekit.activations.corpus.documents import Document
from saekit.errors import ConfigError, CorpusError

_WINDOW_BYTES = 2**26  # of text held in memory
_ROW_BYTES = 2**12  # assumed where the size is unknown
_END = object()


def shuffled(corpus: Corpus, seed: int | None) -> Corpus:
    """The corpus in random order; unchanged where there is no seed."""
    return corpus if seed is None else ShuffledCorpus(corpus, seed)


class ShuffledCorpus(Corpus):
    """A corpus in an order drawn uniformly from all orders of its documents. The order depends on the seed and their number only.

    The corpus is read from its beginning to count its documents, and then once for every 64 MiB of text that are asked for:
    each time, the documents that come next in the random order are picked out and kept in memory. Documents that are not
    picked are skipped without being decoded. This needs neither random access nor a copy on disk, and works with compressed
    files. A corpus with random access (:meth:`Corpus.take`) is not read in full.

    Args:
        corpus: the documents in their own order.
        seed: seed of the order.

    Raises:
        ConfigError: the seed is negative.
    """

    def __init__(self, corpus: Corpus, seed: int) -> None:
        if seed < 0:
            raise ConfigError(f"shuffle is {seed}; a seed must not be negative.")
        super().__init__(corpus.source, corpus.fields)
        self.corpus, self.seed = corpus, seed

    @cached_property
    def order(self) -> np.ndarray:
        """(N,) numbers of the documents in the corpus, in the order in which they are read here."""
        known = self.corpus.count
        count = sum(1 for _ in self.corpus.raw_rows()) if known is None else known
        return np.random.default_rng(self.seed).permutation(np.arange(count, dtype=np.uint32 if count < 2**32 else np.int64))

    @property
    def unshuffled(self) -> Corpus:
        return self.corpus

    def rows(self, start: int = 0) -> Iterator[Any]:
        return (row for row, _ in self._numbered(start))

    def documents(self, start: int = 0) -> Iterator[Document]:
        return (self.document(row, number) for row, number in self._numbered(start))

    def place(self, number: int) -> str:
        return self.corpus.place(int(self.order[number]))

    def _numbered(self, start: int) -> Iterator[tuple[Any, int]]:
        """Decoded rows from place `start` of the order on, and the number of each in the corpus."""
        size = self._window_rows
        for first in range(start, len(self.order), size):
            numbers = self.order[first : first + size]
            yield from zip(self._picked(numbers), numbers.tolist())

    @property
    def _window_rows(self) -> int:
        total = self.corpus.size
        row_bytes = _ROW_BYTES if total is None else max(1, total // max(1, len(self.order)))
        return max(1, _WINDOW_BYTES // row_bytes)

    def _picked(self, numbers: np.ndarray) -> list[Any]:
        """The rows with these numbers, in the order in which the numbers are given, out of one pass over the corpus."""
        rows: list[Any] = [None] * len(numbers)
        places = np.argsort(numbers)
        if (taken := self.corpus.take(numbers[places].tolist())) is not None:
            for place, row in zip(places.tolist(), taken):
                rows[place] = row
            return rows
        source, at = self.corpus.raw_rows(), 0
        for place in places.tolist():
            number = int(numbers[place])
            row = next(itertools.islice(source, number - at, None), _END)
            if row is _END:
                raise CorpusError(f"{self.source} lost documents while it was read.", "Put it back, and run the command again.")
            rows[place], at = decoded(row), number + 1
        return rows

    def fingerprint(self) -> dict[str, str]:
        return {**self.corpus.fingerprint(), "shuffle": str(self.seed)}
