"""Statistics that the pass collects for each feature. The size of the arrays does not depend on the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.index import kernels
from feature_db.index.coactivation import AllPairs, Pairs, PartnersOf, Table
from feature_db.labels.rules import LABEL_METHODS
from feature_db.labels.token_classes import CLASSES, counts
from feature_db.store.examples import MAX_BYTES
from feature_db.store.statistics import BINS
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from feature_db.index.words import Reading


@dataclass(frozen=True)
class BuildConfig:
    """How much is kept for each feature. The defaults need about 30 KB of memory per feature.

    Raises:
        ConfigError: a number is out of range, the examples of a feature need too much room, or a label method is unknown.
    """

    top: int = 20
    """Strongest examples, at most one per document."""
    per_decile: int = 2
    """Examples from each tenth of the feature's activations."""
    sample: int = 60
    """Firing tokens sampled uniformly; those examples are chosen from them. A tenth is missed with probability 0.9^60."""
    before: int = 31
    """Tokens before the peak of an example."""
    after: int = 16
    """Tokens after the peak of an example."""
    duplicate_radius: int = 8
    """Two examples are near-duplicates if the tokens within this distance of their peaks agree up to case, spaces and digits."""
    slots: int = 64
    """Tokens, words and following words tracked per feature. An item with more than 1/slots of its activation is never missed."""
    partners: int = 512
    """Partners tracked per feature for co-activation; dictionaries of up to 8 times as many features count all pairs."""
    batch_tokens: int = 16384
    """Tokens encoded at a time."""
    labels: tuple[str, ...] | None = None
    """Label methods to run, by name in :data:`feature_db.labels.rules.LABEL_METHODS`; None: all."""

    def __post_init__(self) -> None:
        for name in self.labels or ():
            LABEL_METHODS.find(name)
        windows = self.top + 10 * self.per_decile
        if (
            min(self.top, self.slots, self.batch_tokens, self.partners) < 1
            or min(self.before, self.after, self.per_decile, self.sample) < 0
        ):
            raise ConfigError(
                "BuildConfig has a number that is too small.", "top, slots, partners and batch_tokens are at least 1."
            )
        if windows * (self.before + self.after + 16) * 8 > MAX_BYTES:
            raise ConfigError(
                f"{windows} examples of {self.before + self.after + 1} tokens a feature do not fit into {MAX_BYTES >> 20} MiB.",
                "Keep fewer or shorter examples.",
            )


class Block(NamedTuple):
    """Input of the accumulators: N rows of whole contexts."""

    row: int
    """Row of the store where the block starts."""
    tokens: NDArray[np.int32]
    canonical: NDArray[np.int32]
    """Tokens up to case, spaces and digits."""
    position: NDArray[np.int32]
    document: NDArray[np.int64]
    counted: NDArray[np.bool_]
    """Rows to count: ordinary tokens of the split."""
    values: NDArray[np.float32]
    """(N, K) activations."""
    indices: NDArray[np.int64]
    """(N, K) feature of each entry."""


class Moments(NamedTuple):
    """Exact counts, sums and maxima, and a histogram. Arrays are (F, ...)."""

    firing: NDArray[np.int64]
    """Tokens on which the feature fires."""
    total: NDArray[np.float64]
    square: NDArray[np.float64]
    largest: NDArray[np.float32]
    histogram: NDArray[np.uint32]
    """(F, BINS), see :func:`feature_db.store.statistics.bin_edges`."""
    classes: NDArray[np.int64]
    """(F, classes) firing tokens of each class of :data:`feature_db.labels.token_classes.CLASSES`."""
    class_total: NDArray[np.float64]
    """(F, classes) sum of the activation on them."""

    @classmethod
    def empty(cls, F: int) -> Moments:
        return cls(
            np.zeros(F, np.int64),
            np.zeros(F, np.float64),
            np.zeros(F, np.float64),
            np.zeros(F, np.float32),
            np.zeros((F, BINS), np.uint32),
            np.zeros((F, len(CLASSES)), np.int64),
            np.zeros((F, len(CLASSES)), np.float64),
        )


class Hitters(NamedTuple):
    """The items (tokens or words) that hold most of a feature's activation. Arrays are (F, slots)."""

    item: NDArray[np.int32]
    """Item in each slot; -1 if the slot is free."""
    mass: NDArray[np.float64]
    """Activation on the item since it entered: at most `slack` below its total."""
    slack: NDArray[np.float64]
    """Upper bound of the activation on the item before it entered."""
    peak: NDArray[np.float32]
    tokens: NDArray[np.int64]
    """Firing tokens since the item entered."""
    hits: NDArray[np.int64]
    """Occurrences with a firing token since the item entered."""
    last: NDArray[np.int64]
    """The occurrence that was counted last."""

    @classmethod
    def empty(cls, F: int, slots: int) -> Hitters:
        free, zeros = np.full((F, slots), -1, np.int32), np.zeros((F, slots))
        counts = np.zeros((F, slots), np.int64)
        return cls(free, zeros, zeros.copy(), zeros.astype(np.float32), counts, counts.copy(), counts - 1)


class Windows(NamedTuple):
    """Examples: a peak, its place, and the tokens and activations around it. Arrays are (F, slots, ...)."""

    filled: NDArray[np.int32]
    """(F,) slots in use."""
    worst: NDArray[np.int32]
    """(F,) slot that the next better example replaces."""
    priority: NDArray[np.uint64]
    key: NDArray[np.int64]
    """Equal for near-duplicates."""
    value: NDArray[np.float32]
    row: NDArray[np.int64]
    document: NDArray[np.int64]
    position: NDArray[np.int32]
    offset: NDArray[np.int32]
    """Index of the peak in its window."""
    length: NDArray[np.int32]
    tokens: NDArray[np.integer]
    """(F, slots, W), `length` of them in use."""
    values: NDArray[np.float32]

    @classmethod
    def empty(cls, F: int, slots: int, width: int, vocab_size: int) -> Windows:
        shape, token = (F, slots), np.uint16 if vocab_size <= 1 << 16 else np.int32
        return cls(
            np.zeros(F, np.int32),
            np.zeros(F, np.int32),
            np.zeros(shape, np.uint64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros((*shape, width), token),
            np.zeros((*shape, width), np.float32),
        )


class Scratch(NamedTuple):
    """Peaks of the piece that is being read. Arrays are (F,)."""

    best: NDArray[np.float32]
    row: NDArray[np.int64]
    """-1 if the feature has not fired in this piece."""
    touched: NDArray[np.int64]


class Accumulators:
    """All statistics of a dictionary, or of some of its features.

    Args:
        n_features: features F of the dictionary.
        vocab_size: number of token ids.
        config: how much is kept.
        own: the features whose statistics are kept here, where several processes share the work; None: all.
    """

    _PARTS = ("moments", "tokens", "words", "next_words", "top", "pending", "sample", "pairs")
    _OF_TOKENS = ("token_count", "class_count", "totals")

    def __init__(self, n_features: int, vocab_size: int, config: BuildConfig, own: range | None = None) -> None:
        self.config, self._own = config, own
        F = n_features if own is None else len(own)
        width = config.before + 1 + config.after
        self.moments = Moments.empty(F)
        self.tokens, self.words, self.next_words = (Hitters.empty(F, config.slots) for _ in range(3))
        self.top, self.pending, self.sample = (
            Windows.empty(F, slots, width, vocab_size) for slots in (config.top, 1, config.sample)
        )
        self._pairs = Pairs(n_features, config.partners, own)
        self.token_count = np.zeros(vocab_size, np.int64)
        self.class_count = np.zeros(len(CLASSES), np.int64)
        self.totals = np.array([0, 0, -1], np.int64)  # tokens, documents, the last document
        self._scratch = Scratch(np.zeros(F, np.float32), np.full(F, -1, np.int64), np.zeros(F, np.int64))

    @property
    def n_tokens(self) -> int:
        """Tokens counted so far."""
        return int(self.totals[0])

    @property
    def n_documents(self) -> int:
        """Documents counted so far."""
        return int(self.totals[1])

    @property
    def pairs(self) -> AllPairs | Table:
        """Co-firings of features."""
        return self._pairs.counts

    def add(self, block: Block, reading: Reading) -> int:
        """Add a block. Returns -1, or the first row with an activation that is not finite; the statistics are invalid then."""
        own = block if self._own is None else _of_features(block, self._own)
        wrong = kernels.add_moments(own, reading.classes, self.moments)
        if wrong >= 0:
            return int(wrong)
        rows = block.row + np.arange(len(block.tokens))
        kernels.add_hits(own, block.tokens, rows, self.tokens)
        kernels.add_hits(own, reading.word, block.row + reading.word_start, self.words)
        kernels.add_hits(own, reading.next_word, rows, self.next_words)
        c = self.config
        kernels.add_top(own, reading.pieces, c.before, c.duplicate_radius, self._scratch, self.pending, self.top)
        first = 0 if self._own is None else self._own.start
        kernels.add_sample(own, first, reading.pieces, c.before, c.duplicate_radius, self.sample)
        self._pairs.add(block)
        self.token_count += np.bincount(block.tokens[block.counted], minlength=len(self.token_count))
        self.class_count += counts(reading.classes[block.counted])
        documents = block.document[block.counted]
        if len(documents):
            changes = np.count_nonzero(np.diff(documents, prepend=self.totals[2]))
            self.totals[:] = self.totals[0] + len(documents), self.totals[1] + changes, documents[-1]
        return -1

    def finish(self) -> None:
        """Call this after the last block."""
        kernels.end_top(self.pending, self.top)

    def partners(self) -> PartnersOf:
        """The partners of all features."""
        return PartnersOf(self._pairs, self.moments, self.n_tokens)

    def state(self) -> dict[str, NDArray]:
        """All statistics as named arrays."""
        return {name: getattr(self, name) for name in self._OF_TOKENS} | self.of_features()

    def of_features(self) -> dict[str, NDArray]:
        """The statistics of features as named arrays. Those of consecutive ranges of features, one after the other, are those of
        all of them."""
        return {f"{part}.{name}": array for part in self._PARTS for name, array in getattr(self, part)._asdict().items()}

    def rows(self, name: str, own: range) -> slice:
        """Where the statistics of some features are in one of the arrays of all features."""
        if name.startswith("pairs.") and isinstance(self.pairs, AllPairs):
            return slice(own.start * (own.start - 1) // 2, own.stop * (own.stop - 1) // 2)
        return slice(own.start, own.stop)

    def fits(self, state: dict[str, NDArray]) -> bool:
        """Whether a state of all features has the arrays of this dictionary and configuration."""
        mine = self.state()
        if mine.keys() != state.keys():
            return False
        theirs = {name: state[name][self._mine(name)] for name in mine}
        return all((array.shape, array.dtype) == (theirs[name].shape, theirs[name].dtype) for name, array in mine.items())

    def load_state(self, state: dict[str, NDArray]) -> None:
        """Restore what :meth:`state` returned, for all features."""
        for name, array in self.state().items():
            array[...] = state[name][self._mine(name)]

    def load_part(self, state: dict[str, NDArray], own: range) -> None:
        """Restore what :meth:`state` returned, for some features."""
        for name, array in self.state().items():
            array[slice(None) if name in self._OF_TOKENS else self.rows(name, own)] = state[name]

    def _mine(self, name: str) -> slice:
        return slice(None) if self._own is None or name in self._OF_TOKENS else self.rows(name, self._own)


def _of_features(block: Block, own: range) -> Block:
    """The block with the entries of some features only, which are numbered from 0."""
    mine = (block.indices >= own.start) & (block.indices < own.stop)
    return block._replace(values=np.where(mine, block.values, 0), indices=np.where(mine, block.indices - own.start, 0))
