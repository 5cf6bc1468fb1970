"""Exact AUC of many sparse features for many concepts at once, and average precision."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

_NONZEROS = 1 << 23
"""Number of activations that are ranked at once."""


def auc(acts_NF: csc_array, labels_NC: csr_array, group_N: np.ndarray | None = None) -> np.ndarray:
    """(F, C) area under the ROC curve of every feature for every concept. It is exact, and ties count half. It is NaN for a
    concept that all tokens have, or none.

    With groups, only pairs within a group are compared (van Elteren's stratified statistic): the area is the probability that a
    token of the concept has a higher activation than a token of its group without the concept.

    The Mann-Whitney statistic: with R the sum over a concept's n tokens of their ranks by the feature's activation (ties share
    their mean rank), AUC = (R - n (n + 1) / 2) / (n (N - n)). Activations of zero all share one rank r0, so R = n r0 + the sum of
    (rank - r0) over nonzero ones: a product of two sparse matrices, and the ranks depend on no concept. In groups, numerators and
    denominators are summed over the groups.

    Args:
        group_N: the group of each token, integers from 0; None puts all tokens in one group.
    """
    from scipy.sparse import csc_array, csr_array

    acts_NF = csc_array(acts_NF)
    acts_NF.eliminate_zeros()
    N, F = acts_NF.shape
    group_N = np.zeros(N, np.int64) if group_N is None else group_N
    size_G = np.bincount(group_N, minlength=1)
    weights_NC = labels_NC.astype(np.float64)
    member_GN = csr_array((np.ones(N), (group_N, np.arange(N))), shape=(len(size_G), N))
    n_GC = csr_array(member_GN @ weights_NC)
    n_C = np.asarray(n_GC.sum(axis=0)).ravel()
    squares_C = np.asarray((n_GC * n_GC).sum(axis=0)).ravel()
    sizes_C = n_GC.T @ size_G
    pairs_C = sizes_C - squares_C
    # R - n (n + 1) / 2 for a feature that is zero everywhere, summed over the groups.
    silent_C = (sizes_C + n_C) / 2 - (squares_C + n_C) / 2
    auc_FC = np.empty((F, len(n_C)))
    for start, stop in column_blocks(acts_NF.indptr, _NONZEROS):
        block = acts_NF[:, start:stop]
        ranks, shift_FG = _ranks(block, group_N, size_G)
        ranked = csc_array((ranks, block.indices, block.indptr), shape=block.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            auc_FC[start:stop] = ((ranked.T @ weights_NC).toarray() + (shift_FG @ n_GC).toarray() + silent_C) / pairs_C
    auc_FC[:, pairs_C == 0] = np.nan
    return auc_FC


def average_precision(acts_NC: csc_array, labels_NC: csr_array) -> np.ndarray:
    """(C,) average precision of column c of the activations for label c; NaN where no token has the label.

    The mean of the precision over the tokens with the label, each at the threshold of its own activation
    (:func:`sklearn.metrics.average_precision_score`). A feature that says nothing has the base rate, the share of the tokens with
    the label. An AUC does not fall with the base rate: for a concept on 1 token in 1000, most of the tokens above any threshold
    can be others although the AUC is .99.
    """
    from sklearn.metrics import average_precision_score

    labels = labels_NC.tocsc()
    found_C = np.full(labels.shape[1], np.nan)
    for c in np.diff(labels.indptr).nonzero()[0]:
        found_C[c] = average_precision_score(labels[:, [c]].toarray().ravel() > 0, acts_NC[:, [c]].toarray().ravel())
    return found_C


def column_blocks(indptr: np.ndarray, nonzeros: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns of a CSC matrix that have about `nonzeros` entries together; at least one column each."""
    start, F = 0, len(indptr) - 1
    while start < F:
        stop = max(start + 1, int(np.searchsorted(indptr, indptr[start] + nonzeros, side="right")) - 1)
        yield start, stop
        start = stop


def _ranks(acts_NF: csc_array, group_N: np.ndarray, size_G: np.ndarray) -> tuple[np.ndarray, csr_array]:
    """Ranks within groups, column by column.

    Returns:
        ranks: for each nonzero entry, its mean rank in its group minus the rank of the zeros of that group.
        shift_FG: (F, G) rank of the zeros of a group minus the rank they would have if the whole group were zero.
    """
    from scipy.sparse import csr_array

    values, indptr = acts_NF.data, acts_NF.indptr
    G, shape = len(size_G), (acts_NF.shape[1], len(size_G))
    if not len(values):
        return np.zeros(0), csr_array(shape)
    group = group_N[acts_NF.indices]
    order = np.concatenate([a + _order(values[a:b], group[a:b], G) for a, b in pairwise(indptr.tolist())])
    ordered = values[order]
    home = (np.repeat(np.arange(shape[0]), np.diff(indptr)) * G + group)[order]  # the group of a column: one run of entries
    starts = np.ones(len(ordered), bool)
    starts[1:] = home[1:] != home[:-1]
    new = starts.copy()
    new[1:] |= ordered[1:] != ordered[:-1]
    first, start = new.nonzero()[0], starts.nonzero()[0]
    size = np.diff(np.append(first, len(ordered)))
    column, of = np.divmod(home[start], G)
    zeros = size_G[of] - np.diff(np.append(start, len(ordered)))
    zero = np.add.reduceat((ordered < 0).astype(np.int64), start) + (zeros + 1) / 2
    run = (np.cumsum(starts) - 1)[first]
    mean = first - start[run] + (size + 1) / 2 + np.where(ordered[first] > 0, zeros[run], 0)
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(mean - zero[run], size)
    return ranks, csr_array((zero - (size_G[of] + 1) / 2, (column, of)), shape=shape)


def _order(values: np.ndarray, group: np.ndarray, G: int) -> np.ndarray:
    return np.argsort(values) if G == 1 else np.lexsort((values, group))
