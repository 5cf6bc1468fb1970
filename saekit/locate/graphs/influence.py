"""Influence in an attribution graph: paths of all lengths, pruning and scores.

The definitions are those of circuit-tracer (github.com/safety-research/circuit-tracer, graph.py), computed on sparse matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saekit.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
_STEPS = 4096
"""No model has a longer path."""


class Kept(NamedTuple):
    """What pruning leaves: nodes (n,), and a matrix (n, n) that holds the kept edges with their weights."""

    nodes: Flags
    edges: csr_matrix


def normalized(matrix: csr_matrix, totals: Numbers | None = None) -> csr_matrix:
    """Magnitudes of the entries, each row divided by its sum (or by a given total)."""
    from scipy.sparse import diags

    size = abs(matrix).astype(np.float64)
    sums = np.asarray(size.sum(1)).ravel() if totals is None else totals
    return (diags(1 / np.maximum(sums, 1e-10)) @ size).tocsr()


def influence(shares: csr_matrix, weights: Numbers) -> Numbers:
    """w B + w B^2 + w B^3 + ... for the matrix B (n, n) of a graph without cycles and weights w (n,) of the outputs."""
    total = current = weights @ shares
    for _ in range(_STEPS):
        if not current.any():
            return np.asarray(total)
        current = current @ shares
        total = total + current
    raise ConfigError("The graph has a cycle.", "An edge must lead from an earlier object to a later one.")


def smallest_kept(scores: Numbers, share: float) -> float:
    """The smallest score among the largest ones that together make up a share of the sum."""
    if not 0 <= share <= 1:
        raise ConfigError(f"{share} is not a share of influence.", "Give a number from 0 to 1.")
    ordered = np.sort(scores)[::-1]
    total = ordered.sum()
    if not len(ordered) or total <= 0:
        return 0.0
    return float(ordered[min(int(np.searchsorted(np.cumsum(ordered) / total, share)), len(ordered) - 1)])


def cumulative(scores: Numbers) -> Numbers:
    """For each score, the share of the sum that it and all larger ones make up."""
    order = np.argsort(-scores, kind="stable")
    found = np.empty_like(scores)
    found[order] = np.cumsum(scores[order]) / max(scores.sum(), 1e-30)
    return found


def prune(matrix: csr_matrix, weights: Numbers, kinds: NDArray[np.str_], *, nodes: float, edges: float) -> Kept:
    """Keep the nodes with a share of the influence, then the edges with a share of the remaining graph's, then what is connected.

    Tokens and logits are kept. A feature needs an edge that enters and one that leaves, an error one that leaves.

    Args:
        matrix: (n, n) weights; rows are targets.
        weights: (n,) probabilities at logits, 0 elsewhere.
        kinds: (n,) "feature", "error", "token" or "logit".
        nodes, edges: shares from 0 to 1.
    """
    from scipy.sparse import diags

    fixed = (kinds == "token") | (kinds == "logit")
    node_influence = influence(normalized(matrix), weights)
    kept = (node_influence >= smallest_kept(node_influence, nodes)) | fixed
    mask = diags(kept.astype(np.float64))
    left = (mask @ matrix @ mask).tocsr()
    shares = normalized(left)
    scores = (diags(influence(shares, weights) + weights) @ shares).tocoo()
    enough = scores.data >= max(smallest_kept(scores.data, edges), np.finfo(np.float64).tiny)
    row, column = scores.row[enough], scores.col[enough]
    while True:
        enters, leaves = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
        enters[row], leaves[column] = True, True
        connected = kept & (leaves | fixed) & (enters | (kinds != "feature"))
        if (connected == kept).all():
            break
        kept = connected
        both = kept[row] & kept[column]
        row, column = row[both], column[both]
    return Kept(kept, _picked(matrix, row, column))


def _picked(matrix: csr_matrix, row: NDArray[np.int64], column: NDArray[np.int64]) -> csr_matrix:
    from scipy.sparse import csr_matrix

    values = np.asarray(matrix.tocsr()[row, column]).ravel() if len(row) else np.empty(0)
    return csr_matrix((values, (row, column)), shape=matrix.shape)


def replacement_score(matrix: csr_matrix, weights: Numbers, kinds: NDArray[np.str_]) -> float:
    """The share of the influence of tokens in that of tokens and errors: how much the replacement model explains end to end."""
    found = influence(normalized(matrix), weights)
    token, error = (float(found[kinds == kind].sum()) for kind in ("token", "error"))
    return token / (token + error) if token + error else float("nan")


def completeness_score(matrix: csr_matrix, weights: Numbers, kinds: NDArray[np.str_]) -> float:
    """The mean over nodes of the share of their inputs that come from no error, weighted by influence on the output."""
    shares = normalized(matrix)
    without_error = 1 - np.asarray(shares[:, kinds == "error"].sum(1)).ravel()
    outputs = influence(shares, weights) + weights
    return float((without_error * outputs).sum() / outputs.sum())
