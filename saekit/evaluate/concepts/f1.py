"""F1 of sparse features as detectors of concepts, with thresholds that are chosen on other tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saekit.locate.magnitude.auc import column_blocks

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

_NONZEROS = 1 << 20
"""Number of activations that are compared with their labels at once: each has several labels."""


class Counts(NamedTuple):
    """Counts of detectors, one entry for each detector.

    Attributes:
        hits: tokens of the concept on which the detector fires.
        fired: tokens on which the detector fires.
        members: tokens of the concept.
    """

    hits: np.ndarray
    fired: np.ndarray
    members: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of the tokens on which the detector fires that belong to the concept; 0 if it never fires."""
        return self.hits / np.maximum(1, self.fired)

    @property
    def recall(self) -> np.ndarray:
        """Share of the tokens of the concept on which the detector fires; 0 without such tokens."""
        return self.hits / np.maximum(1, self.members)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall: 2 hits / (fired + members)."""
        return 2 * self.hits / np.maximum(1, self.fired + self.members)


def best_thresholds(acts_NF: csc_array, labels_NC: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """The threshold at which each feature detects each concept with the best F1 on these tokens.

    A feature with threshold t > 0 detects the tokens where its activation is at least t. The best F1 is reached at the activation
    of a token of the concept, so no other thresholds are tried.

    Returns:
        f1_FC: (F, C) best F1; 0 where the feature fires on no token of the concept.
        threshold_FC: (F, C) its threshold, inf where the F1 is 0.
    """
    acts_NF = _positive(acts_NF)
    labels_NC = (labels_NC != 0).tocsr()
    (_, F), C = acts_NF.shape, labels_NC.shape[1]
    members_C = np.asarray(labels_NC.sum(axis=0)).ravel()
    f1_FC, threshold_FC = np.zeros(F * C), np.full(F * C, np.inf)
    for start, stop in column_blocks(acts_NF.indptr, _NONZEROS):
        block = acts_NF[:, start:stop]
        feature = np.repeat(np.arange(start, stop), np.diff(block.indptr))
        order = np.lexsort((-block.data, feature))
        value, feature, token = block.data[order], feature[order], block.indices[order]
        # Tokens with equal activations are on the same side of every threshold.
        last = np.ones(len(value), bool)
        last[:-1] = (value[1:] != value[:-1]) | (feature[1:] != feature[:-1])
        end = last.nonzero()[0][np.cumsum(last) - last]
        fired = end + 1 - block.indptr[feature - start]

        entry, concept = _labels_of(token, labels_NC)
        key = feature[entry] * C + concept
        by_key = np.argsort(key, kind="stable")
        entry, key = entry[by_key], key[by_key]
        first = np.ones(len(key), bool)
        first[1:] = key[1:] != key[:-1]
        begins = first.nonzero()[0]
        if not len(begins):
            continue
        of = np.cumsum(first) - 1
        # Among equal activations the last has all of their hits, and so the largest of these values.
        f1 = 2 * (np.arange(len(key)) - begins[of] + 1) / (fired[entry] + members_C[key % C])
        best = np.maximum.reduceat(f1, begins)
        at = np.full(len(begins), len(key))
        reached = (f1 == best[of]).nonzero()[0]
        np.minimum.at(at, of[reached], reached)
        f1_FC[key[begins]], threshold_FC[key[begins]] = best, value[entry[at]]
    return f1_FC.reshape(F, C), threshold_FC.reshape(F, C)


def counts_of_pairs(acts_NC: csc_array, labels_NC: csr_array, threshold_C: np.ndarray) -> Counts:
    """Counts of column c of the activations as a detector of concept c, with threshold c."""
    on = _positive(acts_NC)
    on.data = (on.data >= np.repeat(threshold_C, np.diff(on.indptr))).astype(np.int64)
    member = (labels_NC != 0).astype(np.int64).tocsc()
    sums = ((on * member).sum(axis=0), on.sum(axis=0), member.sum(axis=0))
    return Counts(*(np.asarray(each).ravel() for each in sums))


def counts_of_all(acts_NF: csc_array, labels_NC: csr_array, threshold_FC: np.ndarray) -> Counts:
    """(F, C) counts of every feature as a detector of every concept."""
    acts_NF, labels_NC = _positive(acts_NF), (labels_NC != 0).tocsr()
    F, C = threshold_FC.shape
    hits_K, fired_FC = np.zeros(F * C, np.int64), np.zeros((F, C), np.int64)
    for start, stop in column_blocks(acts_NF.indptr, _NONZEROS):
        block = acts_NF[:, start:stop]
        for f, (begin, end) in enumerate(pairwise(block.indptr.tolist()), start):
            fired_FC[f] = end - begin - np.searchsorted(np.sort(block.data[begin:end]), threshold_FC[f])
        feature = np.repeat(np.arange(start, stop), np.diff(block.indptr))
        entry, concept = _labels_of(block.indices, labels_NC)
        on = block.data[entry] >= threshold_FC[feature[entry], concept]
        hits_K += np.bincount(feature[entry[on]] * C + concept[on], minlength=F * C)
    members_C = np.asarray(labels_NC.sum(axis=0)).ravel()
    return Counts(hits_K.reshape(F, C), fired_FC, np.broadcast_to(members_C, (F, C)))


def _positive(acts_NF: csc_array) -> csc_array:
    """A copy with the activations above zero only."""
    from scipy.sparse import csc_array

    acts_NF = csc_array(acts_NF, copy=True)
    acts_NF.data[acts_NF.data < 0] = 0
    acts_NF.eliminate_zeros()
    return acts_NF


def _labels_of(token_E: np.ndarray, labels_NC: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """All labels of the given tokens: the index of each token in `token_E`, in ascending order, and the concept."""
    count_E = np.diff(labels_NC.indptr)[token_E]
    entry = np.repeat(np.arange(len(token_E)), count_E)
    within = np.arange(len(entry)) - np.repeat(np.cumsum(count_E) - count_E, count_E)
    return entry, labels_NC.indices[labels_NC.indptr[token_E[entry]] + within]
