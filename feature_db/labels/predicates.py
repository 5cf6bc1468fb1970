"""Tests of the tokens of a text, by which a rule label can be run on any text.

A rule (:class:`feature_db.labels.evidence.Rule`) names a test and its items. The test is a function from a :class:`Text` and the
rule to the rows on which the rule says that the feature fires, and a row of :data:`PREDICATES`::

    PREDICATES.register("even", lambda text, rule: text.counted_rows[text.tokens_N[text.counted_rows] % 2 == 0])

A test reads only the text and the rule, never an activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feature_db.labels.evidence import Rule
from feature_db.labels.token_classes import CLASSES, in_class
from feature_db.labels.word_classes import WORD_CLASSES
from saekit.plugins import Registry

if TYPE_CHECKING:
    from feature_db.index.words import Reading
    from saekit.lm import LanguageModel

Rows = NDArray[np.int64]


class Postings:
    """The rows of each item of a column, for fast look-up."""

    def __init__(self, item_N: NDArray[np.integer], rows: Rows) -> None:
        order = np.argsort(item_N[rows], kind="stable")
        self._item, self._rows = item_N[rows][order], rows[order]

    def rows(self, items: Iterable[int]) -> Rows:
        """The rows with one of the items, ascending."""
        wanted = np.unique(np.fromiter(items, np.int64))
        start, stop = (np.searchsorted(self._item, wanted, side=side) for side in ("left", "right"))
        parts = [self._rows[a:b] for a, b in zip(start.tolist(), stop.tolist()) if b > a]
        return parts[0] if len(parts) == 1 else np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))


@dataclass
class Text:
    """N tokens of one or more documents, read in the way that an index reads them.

    Attributes:
        tokens_N: token ids.
        reading: the words of the tokens, their classes, and the pieces (parts of one document in one context).
        counted_N: ordinary tokens; tests never pass on others.
        words: text of each word, by its number in `reading`.
    """

    tokens_N: NDArray[np.int32]
    reading: Reading
    counted_N: NDArray[np.bool_]
    words: Sequence[str]

    @classmethod
    def of(cls, lm: LanguageModel, texts: Sequence[str]) -> Text:
        """Texts, each one a document in a context of its own, without BOS."""
        from feature_db.index.words import Vocabulary, Words

        ids = [[int(token) for token in lm.encode([text], bos=False)[0][0]] for text in texts]
        words = Words(Vocabulary.of(lm.token_strings(range(lm.vocab_size))), lm.decode)
        tokens = np.array([token for each in ids for token in each], np.int32)
        position = np.array([i for each in ids for i in range(len(each))], np.int32)
        document = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
        counted = ~np.isin(tokens, list(lm.special_ids))
        return cls(tokens, words.read(tokens, position, document, counted), counted, words.texts)

    @cached_property
    def counted_rows(self) -> Rows:
        """Rows of ordinary tokens."""
        return np.flatnonzero(self.counted_N)

    @cached_property
    def by_token(self) -> Postings:
        """Rows by token id."""
        return Postings(self.tokens_N, self.counted_rows)

    @cached_property
    def by_word(self) -> Postings:
        """Rows by word."""
        return Postings(self.reading.word, self.counted_rows)

    @cached_property
    def by_next_word(self) -> Postings:
        """Rows by the word that begins at the next row."""
        return Postings(self.reading.next_word, self.counted_rows)

    @cached_property
    def by_next_token(self) -> Postings:
        """Rows by the token of the next row of the piece."""
        next_N = np.append(self.tokens_N[1:], -1).astype(np.int64)
        ends = self.reading.pieces[1:] - 1
        next_N[ends[ends >= 0]] = -1
        return Postings(next_N, self.counted_rows)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def numbers(self, words: Iterable[str | int]) -> list[int]:
        """Numbers of those of the words that the text has."""
        return [self._number[word] for word in words if word in self._number]

    @cached_property
    def piece_N(self) -> NDArray[np.int64]:
        """First row of the piece of each row."""
        lengths = np.diff(self.reading.pieces)
        return np.repeat(self.reading.pieces[:-1], lengths)

    @cached_property
    def end_N(self) -> NDArray[np.int64]:
        """Row after the piece of each row."""
        return np.repeat(self.reading.pieces[1:], np.diff(self.reading.pieces))

    @cached_property
    def by_word_class(self) -> dict[str, Rows]:
        """Rows of words in each class of :data:`feature_db.labels.word_classes.WORD_CLASSES`."""
        word = self.reading.word
        found = {}
        for name, test in WORD_CLASSES.items():
            members = np.array([test.holds(text) for text in self.words] + [False], bool)
            found[name] = np.flatnonzero(members[word] & (word >= 0) & self.counted_N)
        return found


def word(text: Text, rule: Rule) -> Rows:
    """Tokens of the words."""
    return text.by_word.rows(text.numbers(rule.items))


def token(text: Text, rule: Rule) -> Rows:
    """Tokens with these ids."""
    return text.by_token.rows(item for item in rule.items if isinstance(item, int))


def next_word(text: Text, rule: Rule) -> Rows:
    """Tokens that one of the words follows."""
    return text.by_next_word.rows(text.numbers(rule.items))


def next_token(text: Text, rule: Rule) -> Rows:
    """Tokens that one of the tokens follows."""
    return text.by_next_token.rows(item for item in rule.items if isinstance(item, int))


def near(text: Text, rule: Rule) -> Rows:
    """Tokens with one of the words around them, at most `before` tokens before or `after` tokens after; their own word is not
    around them."""
    inside = text.by_word.rows(text.numbers(rule.items))
    start = text.reading.word_start[inside]
    rows = inside[start == inside]  # one for each occurrence
    if not len(rows):
        return rows
    edges = np.zeros(len(text.tokens_N) + 1, np.int32)
    np.add.at(edges, np.maximum(rows - rule.after, text.piece_N[rows]), 1)
    np.add.at(edges, np.minimum(rows + rule.before + 1, text.end_N[rows]), -1)
    around = np.cumsum(edges[:-1])
    own = inside - start <= rule.before
    around[inside[own]] -= 1
    return np.flatnonzero((around > 0) & text.counted_N)


def token_class(text: Text, rule: Rule) -> Rows:
    """Tokens in one of the classes of :data:`feature_db.labels.token_classes.CLASSES`."""
    inside = np.zeros(len(text.tokens_N), bool)
    for item in rule.items:
        if item in CLASSES:
            inside |= in_class(text.reading.classes, str(item))
    return np.flatnonzero(inside & text.counted_N)


def word_class(text: Text, rule: Rule) -> Rows:
    """Tokens of words in one of the classes of :data:`feature_db.labels.word_classes.WORD_CLASSES`."""
    parts = [text.by_word_class[item] for item in rule.items if isinstance(item, str) and item in text.by_word_class]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


PREDICATES: Registry[Callable[[Text, Rule], Rows]] = Registry(
    "test of a rule",
    {
        "word": word,
        "token": token,
        "next_word": next_word,
        "next_token": next_token,
        "near": near,
        "class": token_class,
        "word_class": word_class,
    },
)
"""Tests by name. Each returns the rows, ascending, on which a rule says that the feature fires."""


def fires(text: Text, rule: Rule) -> NDArray[np.bool_]:
    """Whether a rule says that the feature fires, at each token of a text.

    Raises:
        ConfigError: there is no such test.
    """
    mask = np.zeros(len(text.tokens_N), bool)
    mask[PREDICATES.find(rule.test)(text, rule)] = True
    return mask
