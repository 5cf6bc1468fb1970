"""Kinds of things: which words name kinds of what a phrase names ("vehicle": car, truck), and which are its opposites.

The data is a part of WordNet 3.0 (wordnet.npz, written by scripts/write_wordnet.py; its license is in wordnet.txt).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

import numpy as np
from numpy.typing import NDArray

PARTS = "nvar"
"""Noun, verb, adjective, adverb."""
_MOST = 4000
"""Words that name kinds of one thing, at most."""


@dataclass(frozen=True)
class WordNet:
    """W words and S senses, in Y synsets. A synset is a meaning that several words share."""

    word: NDArray[np.bytes_]
    """(W,) words and phrases, ascending, in lower case."""
    count: NDArray[np.int32]
    """(W,) occurrences in a corpus with marked senses."""
    part: NDArray[np.int8]
    """(Y,) part of speech, as an index of :data:`PARTS`."""
    sense: NDArray[np.int32]
    """(S, 2) word and synset, by word."""
    share: NDArray[np.uint8]
    """(S,) how often the word has this sense, of 255."""
    below: NDArray[np.int32]
    """(B, 2) synset and another that is a kind or an instance of it, by synset."""
    opposite: NDArray[np.int32]
    """(O, 2) words that are opposites, by the first."""
    form: NDArray[np.bytes_]
    """(I,) irregular forms, ascending."""
    form_of: NDArray[np.int32]
    """(I,) the word of each form."""
    form_part: NDArray[np.int8]
    """(I,) part of speech of each form."""

    def find(self, phrase: str) -> int | None:
        """Index of a word or phrase; None where it is not known."""
        key = phrase.encode("ascii", "replace")
        if len(key) > self.word.itemsize:  # else NumPy makes a copy of all words in which it fits
            return None
        place = int(np.searchsorted(self.word, np.bytes_(key)))
        return place if place < len(self.word) and self.word[place] == key else None

    def frequency(self, phrase: str) -> dict[str, float]:
        """How often a word is a noun, a verb, an adjective or an adverb, by the letters of :data:`PARTS`. Never zero."""
        word = self.find(phrase)
        found: dict[str, float] = {}
        for synset, share in self._senses(phrase):
            part = PARTS[self.part[synset]]
            found[part] = found.get(part, 0.0) + share * (int(self.count[word]) + 1)
        return found

    def kinds(self, phrase: str) -> dict[tuple[str, str], float]:
        """Words that name what a phrase names or kinds of it.

        Returns:
            (word, part of speech) -> how often the word has such a sense, times how often the phrase has the sense above it.
        """
        best: dict[tuple[int, int], float] = {}
        for synset, share in self._senses(phrase):
            rows = self._by_synset[1][_ranges(self._by_synset[0], self._under(synset))]
            weights, part = share * self.share[rows] / 255, int(self.part[synset])
            for word, weight in zip(self.sense[rows, 0].tolist(), weights.tolist()):
                best[word, part] = max(best.get((word, part), 0.0), weight)
        largest = sorted(best.items(), key=lambda each: (-each[1], each[0]))[:_MOST]
        return {(self.word[word].decode(), PARTS[part]): weight for (word, part), weight in largest}

    def opposites(self, phrase: str) -> set[str]:
        """Words that are opposites of a word in any of its senses, and adjectives like them."""
        word = self.find(phrase)
        if word is None:
            return set()
        others = self.opposite[slice(*np.searchsorted(self.opposite[:, 0], [word, word + 1])), 1]
        found = {self.word[other].decode() for other in others.tolist()}
        for text in sorted(found):
            synsets = np.array([synset for synset, _ in self._senses(text) if PARTS[self.part[synset]] == "a"], np.int64)
            rows = self._by_synset[1][_ranges(self._by_synset[0], np.union1d(synsets, self._children(synsets)))]
            found.update(each.decode() for each in self.word[self.sense[rows, 0]])
        return found

    def bases(self, form: str) -> list[tuple[str, str]]:
        """Words and their parts of speech that an irregular form is a form of ("mice": mouse, n)."""
        key = np.bytes_(form.encode("ascii", "replace"))
        rows = slice(np.searchsorted(self.form, key), np.searchsorted(self.form, key, "right"))
        return [(self.word[word].decode(), PARTS[part]) for word, part in zip(self.form_of[rows], self.form_part[rows])]

    def forms(self, word: str, part: str) -> list[str]:
        """Irregular forms of a word."""
        return self._irregular.get((word, part), [])

    def _senses(self, phrase: str) -> list[tuple[int, float]]:
        """Synsets of a phrase, each with its share of the phrase's occurrences."""
        word = self.find(phrase)
        if word is None:
            return []
        rows = slice(*np.searchsorted(self.sense[:, 0], [word, word + 1]))
        return list(zip(self.sense[rows, 1].tolist(), (self.share[rows] / 255).tolist()))

    def _under(self, synset: int) -> NDArray[np.int64]:
        """A synset and all that are below it."""
        found = last = np.array([synset], np.int64)
        while len(last):
            last = np.setdiff1d(self._children(last), found)
            found = np.union1d(found, last)
        return found

    def _children(self, synsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.below[_ranges(self._begin_below, synsets), 1].astype(np.int64)

    @cached_property
    def _begin_below(self) -> NDArray[np.int64]:
        return np.searchsorted(self.below[:, 0], np.arange(len(self.part) + 1))

    @cached_property
    def _by_synset(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the senses of each synset begin in the order by synset, and this order."""
        order = np.argsort(self.sense[:, 1], kind="stable")
        return np.searchsorted(self.sense[order, 1], np.arange(len(self.part) + 1)), order

    @cached_property
    def _irregular(self) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for form, word, part in zip(self.form.tolist(), self.word[self.form_of].tolist(), self.form_part.tolist()):
            found.setdefault((word.decode(), PARTS[part]), []).append(form.decode())
        return found


@cache
def wordnet() -> WordNet:
    """The data, loaded once."""
    with (resources.files("feature_db.meaning") / "wordnet.npz").open("rb") as file:
        return WordNet(**np.load(file))


def _ranges(begin: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows of some items whose rows begin at `begin`."""
    sizes = begin[items + 1] - begin[items]
    return np.arange(int(sizes.sum())) + np.repeat(begin[items] - np.cumsum(sizes) + sizes, sizes)
