"""The looks of each token id, and the whole words that a stream of tokens spells.

A word is a run of tokens in one document without a break between word characters (letters, digits, apostrophes, combining
marks). Its text is case-folded and stripped of surrounding characters. A run without word characters (".", a line break) is a
word of its own. Each ideograph and kana is a word of its own, because no spaces separate them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from feature_db.labels.token_classes import BIT, LANGUAGE_SHIFT
from feature_db.meaning.languages import detect, languages_of
from feature_db.meaning.parts_of_speech import classes_of

MAX_FORMS = 1 << 20
MAX_WORD_TOKENS = 16

_QUOTES = frozenset("\"'“”‘’«»„`")


# How a tokenizer shows one byte of a character that is split between tokens.
_TORN = re.compile(r"\\x[0-9a-f]{2}")
_YEAR = re.compile(r"[1-9][0-9]{3}")


def is_word_char(char: str) -> bool:
    """Whether a character is part of a word."""
    return char.isalnum() or char in "'’" or unicodedata.category(char).startswith("M")


def _joins(text: str, side: int) -> bool:
    """Whether a token continues the word on its left (side 0) or right (side -1). A part of a split character always does."""
    torn = _TORN.match(text) if side == 0 else _TORN.match(text, len(text) - 4)
    return bool(text) and (torn is not None or (is_word_char(text[side]) and not _alone(text[side])))


def _alone(char: str) -> bool:
    return "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff"


def word_text(text: str) -> str:
    """The word that a run of tokens spells, case-folded and without surrounding characters. Never empty."""
    left, right = 0, len(text)
    while left < right and not (is_word_char(text[left]) and text[left] not in _QUOTES):
        left += 1
    while right > left and not (is_word_char(text[right - 1]) and text[right - 1] not in _QUOTES):
        right -= 1
    return (text[left:right] or text.strip() or text or "?").casefold()


@dataclass
class Vocabulary:
    """The looks of every token id. Arrays are (V,)."""

    texts: list[str]
    joins_left: NDArray[np.bool_]
    """The token begins with a word character, so it continues the word before it."""
    joins_right: NDArray[np.bool_]
    """The token ends with a word character."""
    classes: NDArray[np.int32]
    canonical: NDArray[np.int32]
    """Equal for tokens that differ only in case, spaces or digits."""
    neutral: NDArray[np.bool_]
    """White space and quotation marks: they may stand between the end of a sentence and the next word."""
    ends_sentence: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Vocabulary:
        """The vocabulary of one display string per token id."""
        canonical: dict[str, int] = {}
        folded = ["".join("0" if c.isdigit() else c for c in text.strip().casefold()) or text for text in texts]
        return cls(
            list(texts),
            np.array([_joins(text, 0) for text in texts], bool),
            np.array([_joins(text, -1) for text in texts], bool),
            np.array([_look(text) for text in texts], np.int32),
            np.array([canonical.setdefault(f, len(canonical)) for f in folded], np.int32),
            np.array([all(c in _QUOTES for c in text.strip()) and "\n" not in text for text in texts], bool),
            np.array(["\n" in t or t.strip()[-1:] in tuple(".!?…。！？") for t in texts], bool),
        )

    def __len__(self) -> int:
        return len(self.texts)


def _look(text: str) -> int:
    bare = text.strip()
    letters = [c for c in bare if c.isalpha()]
    bits = 0
    if bare.lstrip("".join(_QUOTES))[:1].isupper():
        bits |= BIT["capitalised"]
    if len(letters) > 1 and all(c.isupper() for c in letters):
        bits |= BIT["upper"]
    if not letters and any(c.isdigit() for c in bare):
        bits |= BIT["digits"]
    if bare and not any(is_word_char(c) and c not in _QUOTES for c in bare):
        bits |= BIT["quote"] if all(c in _QUOTES for c in bare) else BIT["punctuation"]
    if "\n" in text and not bare:
        bits |= BIT["newline"]
    return bits


def _grammar(word: str) -> int:
    bits = sum(BIT[name] for name in classes_of(word))
    return bits | BIT["year"] if _YEAR.fullmatch(word) else bits


@dataclass
class Reading:
    """The words of a block of tokens. Arrays are (N,) unless stated; rows count from the start of the block."""

    pieces: NDArray[np.int64]
    """(P + 1,) first row of each piece, then N. A piece is the part of one document in one context."""
    word: NDArray[np.int32]
    """Word of each token, -1 for none."""
    word_start: NDArray[np.int64]
    """Row where that word begins."""
    next_word: NDArray[np.int32]
    """Word that begins at the next row of the piece, or -1."""
    classes: NDArray[np.int32]
    """Classes of each token, as bits; see :mod:`feature_db.labels.token_classes`."""


@dataclass
class Words:
    """The words of a stream.

    A form is one way of cutting a word into tokens. Forms and words are numbered in the order of their first appearance. After
    `limit` forms, a new form gets no word (-1): this bounds the memory and affects only rare words.
    """

    vocabulary: Vocabulary
    decode: Callable[[list[int]], str]
    """Text of token ids, for words with a character that is split between tokens."""
    limit: int = MAX_FORMS
    texts: list[str] = field(default_factory=list)
    forms: list[tuple[int, ...]] = field(default_factory=list)
    form_word: list[int] = field(default_factory=list)
    form_count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    word_classes: list[int] = field(default_factory=list)
    """Bits of the classes that all tokens of a word belong to."""
    word_languages: list[int] = field(default_factory=list)
    """Bits of the languages that have the word among their frequent ones."""
    _form_of: dict[int, int] = field(default_factory=dict)
    _word_of: dict[str, int] = field(default_factory=dict)
    _by_hash: tuple[NDArray[np.int64], NDArray[np.int32]] = field(
        default_factory=lambda: (np.zeros(0, np.int64), np.zeros(0, np.int32))
    )

    def read(
        self,
        tokens: NDArray[np.int32],
        position: NDArray[np.int32],
        document: NDArray[np.int64],
        counted: NDArray[np.bool_],
        ordinary: NDArray[np.bool_] | None = None,
    ) -> Reading:
        """Cut a block of whole contexts into words.

        Args:
            tokens: (N,) token ids.
            position: (N,) place in the context; 0 begins one.
            document: (N,) document of each token.
            counted: (N,) tokens to read; other tokens belong to no word.
            ordinary: (N,) tokens that can be the first of a context, those of documents that are not counted included; None:
                those that are counted.
        """
        from feature_db.index.kernels import span_hashes

        n, rows = len(tokens), np.arange(len(tokens))
        new_context = (position == 0) | (rows == 0)
        new_piece = new_context.copy()
        new_piece[1:] |= document[1:] != document[:-1]

        v = self.vocabulary
        joined = np.zeros(n, bool)
        joined[1:] = v.joins_right[tokens[:-1]] & v.joins_left[tokens[1:]] & counted[:-1] & ~new_piece[1:]
        starts, hashes, lengths = span_hashes(tokens, joined, counted, MAX_WORD_TOKENS)
        begins = np.zeros(n, bool)
        begins[starts] = True
        word, word_start = np.full(n, -1, np.int32), np.full(n, -1, np.int64)
        next_word = np.full(n, -1, np.int32)
        span = np.cumsum(begins)[counted] - 1
        word_of_span, class_of_span, languages_of_span = self._count(tokens, starts, hashes, lengths)
        word[counted] = word_of_span[span]
        word_start[counted] = starts[span]
        follows = begins[1:] & ~new_piece[1:]
        next_word[:-1][follows] = word[1:][follows]

        classes = v.classes[tokens]
        classes[counted] |= class_of_span[span]
        long = np.zeros(n, bool)
        long[counted] = lengths[span] > 1
        classes[long & begins] |= BIT["first_piece"]
        later = long & ~begins
        classes[later] = (classes[later] | BIT["later_piece"]) & ~BIT["capitalised"]
        ordinary = counted if ordinary is None else ordinary
        ordinal = np.cumsum(ordinary)
        context = np.maximum.accumulate(np.where(new_context, rows, 0))
        classes[counted & ordinary & (ordinal - ordinal[context] + ordinary[context] == 1)] |= BIT["first_token"]
        # The last token before, in the same piece, that is neither white space nor a quotation mark.
        solid = np.maximum.accumulate(np.where(counted & ~v.neutral[tokens], rows, -1))
        before = np.concatenate([[-1], solid[:-1]])
        piece = np.maximum.accumulate(np.where(new_piece, rows, 0))
        starts_sentence = (before < piece) | v.ends_sentence[tokens[before]]
        classes[begins & (before >= piece) & starts_sentence & v.joins_right[tokens]] |= BIT["sentence_start"]
        first = np.maximum(word_start, 0)
        named = (word >= 0) & ~starts_sentence[first] & ((v.classes[tokens[first]] & BIT["capitalised"]) > 0)
        classes[named] |= BIT["name"]
        pieces = np.append(np.flatnonzero(new_piece), n)
        languages = np.zeros(n, np.int64)
        languages[starts] = languages_of_span
        language = detect(languages, begins & v.joins_right[tokens], pieces)
        classes[counted] |= (language[counted].astype(np.int32) + 1) << LANGUAGE_SHIFT
        return Reading(pieces, word, word_start, next_word, classes)

    def look_up(self, tokens: NDArray[np.int32], new_window: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Words in windows of the text and the rows where they begin, (S,). Unknown words and words at an edge are -1."""
        from feature_db.index.kernels import span_hashes

        v, n = self.vocabulary, len(tokens)
        joined = np.zeros(n, bool)
        joined[1:] = v.joins_right[tokens[:-1]] & v.joins_left[tokens[1:]] & ~new_window[1:]
        starts, hashes, lengths = span_hashes(tokens, joined, np.ones(n, bool), MAX_WORD_TOKENS)
        keys, words = self._sorted
        place = np.minimum(np.searchsorted(keys, hashes), max(len(keys) - 1, 0))
        word = np.where(keys[place] == hashes, words[place], -1) if len(keys) else np.full(len(hashes), -1, np.int32)
        ends_window = np.append(new_window[1:], True)
        torn = (new_window[starts] & v.joins_left[tokens[starts]]) | (
            ends_window[starts + lengths - 1] & v.joins_right[tokens[starts + lengths - 1]]
        )
        word[torn] = -1
        return word, starts

    @property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Hashes of all forms, ascending, and the word of each."""
        if len(self._by_hash[0]) != len(self.forms):
            keys = np.fromiter(self._form_of, np.int64, len(self.forms))
            order = np.argsort(keys)
            self._by_hash = keys[order], np.array(self.form_word, np.int32)[order]
        return self._by_hash

    def _count(
        self, tokens: NDArray[np.int32], starts: NDArray[np.int64], hashes: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """The word of every span, its classes and its languages. New forms are added, and all forms are counted."""
        distinct, first, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        form_of = np.full(len(distinct), -1, np.int64)
        for j in np.argsort(first, kind="stable").tolist():
            key, start = int(distinct[j]), int(starts[first[j]])
            form = self._form_of.get(key, -1)
            if form < 0 and len(self.forms) < self.limit:
                form = self._add(key, tuple(tokens[start : start + int(lengths[first[j]])].tolist()))
            form_of[j] = form
        if len(self.forms) > len(self.form_count):
            self.form_count = np.concatenate([self.form_count, np.zeros(len(self.forms) - len(self.form_count), np.int64)])
        self.form_count[form_of[form_of >= 0]] += counts[form_of >= 0]
        words = np.array([self.form_word[form] if form >= 0 else -1 for form in form_of.tolist()], np.int32)
        classes = np.array([self.word_classes[word] if word >= 0 else 0 for word in words.tolist()], np.int32)
        languages = np.array([self.word_languages[word] if word >= 0 else 0 for word in words.tolist()], np.int64)
        return words[inverse], classes[inverse], languages[inverse]

    def _add(self, key: int, form: tuple[int, ...]) -> int:
        text = "".join(self.vocabulary.texts[t] for t in form)
        word = word_text(self.decode(list(form)) if _TORN.search(text) else text)
        self._form_of[key] = len(self.forms)
        self.forms.append(form)
        if word not in self._word_of:
            self._word_of[word] = len(self.texts)
            self.texts.append(word)
            self.word_classes.append(_grammar(word))
            self.word_languages.append(languages_of(word))
        self.form_word.append(self._word_of[word])
        return len(self.forms) - 1

    def counts(self) -> NDArray[np.int64]:
        """Number of occurrences of every word, (words,)."""
        return np.bincount(self.form_word, weights=self.form_count, minlength=len(self.texts)).astype(np.int64)

    def state(self) -> dict[str, NDArray]:
        """All forms and counts as named arrays."""
        return {
            "keys": np.fromiter(self._form_of, np.int64, len(self.forms)),
            "lengths": np.array([len(form) for form in self.forms], np.int32),
            "tokens": np.array([token for form in self.forms for token in form], np.int32),
            "counts": self.form_count,
        }

    def fits(self, state: dict[str, NDArray]) -> bool:
        """Whether a state has the arrays of :meth:`state`, of lengths that agree."""
        mine = self.state()
        alike = mine.keys() == state.keys() and all(
            (state[name].dtype, state[name].ndim) == (array.dtype, 1) for name, array in mine.items()
        )
        if not alike:
            return False
        forms = len(state["keys"])
        return forms == len(state["lengths"]) == len(state["counts"]) and int(state["lengths"].sum()) == len(state["tokens"])

    def load_state(self, state: dict[str, NDArray]) -> None:
        """Restore what :meth:`state` returned."""
        ends = np.cumsum(state["lengths"]).tolist()
        tokens = state["tokens"].tolist()
        for key, start, end in zip(state["keys"].tolist(), [0, *ends], ends):
            self._add(key, tuple(tokens[start:end]))
        self.form_count = state["counts"]
