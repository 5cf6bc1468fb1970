"""The words that the features of a dictionary fire on, as arrays for fast search.

V words, F features, E entries (one for each word that a feature keeps in the role `fires_word`), D width of the embedder.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays.feature_arrays import FeatureArrays
from feature_db.meaning.embedders import Embedder, unit
from feature_db.store import stored
from feature_db.store.stored import INT, TEXT

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LEAST_KEPT = 0.3
"""A feature whose kept words hold less of its activation is about other things: its precision is taken of this share."""
_SPARSE = 16
"""Where fewer than one in so many features occurs, sorting the occurrences is faster than a table of all features."""
_COPIED = 64 << 20
"""Bytes of embeddings that are copied into memory."""


class WordSet(NamedTuple):
    """Words that a query stands for."""

    why: str
    """What the words are, for people: "frequent words of French"."""
    words: NDArray[np.int64]
    """Indices of words of a profile."""
    weights: NDArray[np.float32]
    """How far each is meant, 0 to 1."""
    evenly: bool = False
    """Whether words count by the square root of their occurrences: a category is more than its commonest words."""
    open: bool = False
    """Whether there are more such words than listed: the recall is then taken of the share of activation on the words that are
    kept for a feature, as its precision is."""
    share: float = 1.0
    """Share of the query that the name of the set has: "article" is half of "newspaper article"."""


class Answer(NamedTuple):
    """Features that fire on a set of words, in ascending order."""

    features: NDArray[np.int64]
    f1: NDArray[np.float32]


@dataclass(frozen=True)
class Profile:
    """What the features of one dictionary fire on. The arrays may be memory-mapped."""

    term_V: NDArray[np.int64]
    """Ids of the words in the table `term`, ascending."""
    count_V: NDArray[np.float32]
    """Occurrences in the corpus."""
    vector_VD: NDArray[np.float16]
    """Embeddings of the words, of length 1 after `mean_D` was subtracted; zero for marks without a letter or digit."""
    mean_D: NDArray[np.float32]
    """Mean embedding of the corpus's tokens. What all words share says nothing about any of them."""
    begin_F: NDArray[np.int64]
    """(F + 1) where the entries of each feature begin."""
    word_E: NDArray[np.int32]
    share_E: NDArray[np.float32]
    """Share of the feature's activation that lies on the word."""
    kept_F: NDArray[np.float32]
    """Sum of the shares of a feature, at least :data:`LEAST_KEPT`."""
    norm_F: NDArray[np.float32]
    """Length of the sum of share * vector over the words of a feature."""
    begin_V: NDArray[np.int64]
    """(V + 1) where the entries of each word begin in the arrays by word."""
    feature_E: NDArray[np.int32]
    shared_E: NDArray[np.float32]
    """`share_E`, by word."""
    rate_E: NDArray[np.float32]
    """Share of the word's occurrences on which the feature fires, by word."""

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.begin_F) - 1

    def likeness(self, texts: list[str], embedder: Embedder) -> NDArray[np.float32]:
        """(V,) cosine of each word with the nearest of the texts. Zero where the embedder knows nothing of a text."""
        known = embedder.embed(texts)
        known = known[np.abs(known).sum(1) > 0]
        if not len(known) or not len(self.term_V):
            return np.zeros(len(self.term_V), np.float32)
        return np.asarray(self.products(unit(known - self.mean_D).T).max(1), np.float32)

    def products(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(V,) or (V, N) inner products of a vector (D,) or several (D, N) with each word's embedding."""
        if self._small is not None:
            return self._small @ vectors
        block = 1 << 14
        parts = [self.vector_VD[i : i + block].astype(np.float32) @ vectors for i in range(0, len(self.vector_VD), block)]
        return np.concatenate(parts) if parts else np.zeros((0, *vectors.shape[1:]), np.float32)

    @cached_property
    def _small(self) -> NDArray[np.float32] | None:
        """The embeddings as float32, which takes longer than the products; None where this copy would be large."""
        return self.vector_VD.astype(np.float32) if 4 * self.vector_VD.size <= _COPIED else None

    def meaning(self, likeness_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """(F,) cosine of a query with the mean embedding of the words that each feature fires on, weighted by their shares.

        The mean is linear in the words, so it needs no vector for each feature: only the cosines of the words.
        """
        return np.asarray(self._shares_FV @ likeness_V / np.maximum(self.norm_F, 1e-9), np.float32)

    @cached_property
    def _shares_FV(self) -> csr_array:
        from scipy.sparse import csr_array

        # Indices of 32 bits: else scipy copies all of them to 64.
        begin = self.begin_F.astype(np.int32 if len(self.word_E) < 1 << 31 else np.int64)
        return csr_array((self.share_E, self.word_E, begin), shape=(self.n_features, len(self.term_V)))

    def answer(self, asked: WordSet) -> Answer:
        """Features that fire on words of the set, each with its F1 as a detector of the set.

        The precision is the share of the activation on the set, of that on all words kept for the feature. The recall is the
        share of the occurrences of the set's words on which the feature fires. A word counts by its weight in both.
        """
        sizes = self.begin_V[asked.words + 1] - self.begin_V[asked.words]
        spans = [slice(first, first + size) for first, size in zip(self.begin_V[asked.words].tolist(), sizes.tolist())]

        def joined(array_E: NDArray) -> NDArray:
            return np.concatenate([array_E[:0], *(array_E[span] for span in spans)])

        feature_N = joined(self.feature_E)
        counts = asked.weights * self.count_V[asked.words] ** (0.5 if asked.evenly else 1.0)
        features, place = _numbered(feature_N, self.n_features)

        def summed(weight: NDArray, of_E: NDArray) -> NDArray[np.float64]:
            sums: NDArray[Any] = np.bincount(place, np.repeat(weight, sizes) * joined(of_E))
            return sums if len(sums) == len(features) else sums[features]  # there, `place` is the feature

        precision = summed(asked.weights, self.shared_E) / self.kept_F[features]
        recall = summed(counts, self.rate_E) / max(counts.sum(), 1e-9)
        if asked.open:
            recall = np.minimum(recall / self.kept_F[features], 1)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        return Answer(features, f1.astype(np.float32))

    def words_of(self, feature: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Words that a feature fires on, and their shares."""
        entries = slice(self.begin_F[feature], self.begin_F[feature + 1])
        return self.word_E[entries], self.share_E[entries]

    def index_of(self, terms: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the words with these term ids; terms that no feature fires on are left out."""
        places, known = self.places_of(terms)
        return places[known]

    def places_of(self, terms: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each of these term ids an index of a word, and whether it is the word's."""
        if not len(self.term_V):
            return np.zeros(len(terms), np.int64), np.zeros(len(terms), bool)
        places = np.minimum(np.searchsorted(self.term_V, terms), len(self.term_V) - 1)
        return places, self.term_V[places] == terms

    def arrays(self) -> dict[str, NDArray]:
        """All arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def largest(values: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Indices of the n largest positive values, the largest first."""
    n = min(n, len(values))
    best = np.argpartition(values, len(values) - n)[len(values) - n :] if n else np.zeros(0, np.int64)
    best = best[np.argsort(-values[best], kind="stable")]
    return best[values[best] > 0]


def _numbered(feature_N: NDArray[np.int32], n_features: int) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """The features that occur, ascending, and for each occurrence its place among them, or, where many occur, the feature."""
    if _SPARSE * len(feature_N) < n_features:
        features, place = np.unique(feature_N, return_inverse=True)
        return features.astype(np.int64), place
    occurs_F = np.zeros(n_features, bool)
    occurs_F[feature_N] = True
    return np.flatnonzero(occurs_F), feature_N


def profile(db: sqlite3.Connection, sae: int, arrays: FeatureArrays, embedder: Embedder) -> Profile:
    """The profile of a dictionary, from the rows of the database.

    Args:
        sae: id of the dictionary.
        arrays: the rows of its features.
    """
    n_features = arrays.n_features
    feature_E, term_E, share_E, rate_E = arrays.words()
    term_V, word_E = np.unique(term_E, return_inverse=True)
    terms = _terms(db, sae)
    texts = [terms[term][0] for term in term_V.tolist()]
    count_V = np.array([terms[term][1] for term in term_V.tolist()], np.float32)
    spoken_V = np.array([any(char.isalnum() for char in text) for text in texts], bool)
    vectors = embedder.embed(texts) if texts else np.zeros((0, embedder.width), np.float32)
    weights = count_V * spoken_V
    mean_D = (weights @ vectors / max(float(weights.sum()), 1.0)).astype(np.float32)
    known_V = spoken_V & (np.abs(vectors).sum(1) > 0)  # a word that the embedder does not know is near to none
    vectors = np.where(known_V[:, None], unit(vectors - mean_D), 0).astype(np.float32)
    order = np.argsort(word_E, kind="stable")
    return Profile(
        term_V=term_V,
        count_V=count_V,
        vector_VD=vectors.astype(np.float16),
        mean_D=mean_D,
        begin_F=np.searchsorted(feature_E, np.arange(n_features + 1)),
        word_E=word_E.astype(np.int32),
        share_E=share_E,
        kept_F=np.maximum(np.bincount(feature_E, share_E, n_features), LEAST_KEPT).astype(np.float32),
        norm_F=_norms(feature_E, word_E, share_E, vectors, n_features),
        begin_V=np.searchsorted(word_E[order], np.arange(len(term_V) + 1)),
        feature_E=feature_E[order].astype(np.int32),
        shared_E=share_E[order],
        rate_E=rate_E[order],
    )


def _norms(feature_E: NDArray, word_E: NDArray, share_E: NDArray, vectors: NDArray, n_features: int) -> NDArray[np.float32]:
    """Lengths of the summed vectors. Computed in blocks of features, since all sums together may not fit in memory."""
    from scipy.sparse import csr_array

    norm_F = np.zeros(n_features, np.float32)
    block = 1 << 14
    for start in range(0, n_features, block):
        stop = min(start + block, n_features)
        low, high = np.searchsorted(feature_E, [start, stop])
        sums = csr_array((share_E[low:high], (feature_E[low:high] - start, word_E[low:high])), shape=(stop - start, len(vectors)))
        norm_F[start:stop] = np.linalg.norm(sums @ vectors, axis=1)
    return norm_F


def _terms(db: sqlite3.Connection, sae: int) -> dict[int, tuple[str, int]]:
    found = db.execute(
        "SELECT term.id, term.text, term.count FROM term JOIN sae ON sae.corpus = term.corpus WHERE sae.id = ? AND kind = 'word'",
        (sae,),
    )
    return {i: (text, count) for i, text, count in stored.rows("the words of a corpus", found, INT, TEXT, INT)}
