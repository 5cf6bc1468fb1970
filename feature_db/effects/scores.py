"""The input score of features, and the promoted tokens that both scores of Arad et al. (2025) compare with."""

from __future__ import annotations

import sqlite3

import numpy as np
from numpy.typing import NDArray

from feature_db.errors import damaged
from feature_db.store import schema, stored, token_lists
from feature_db.store.examples import TOP, unpack
from feature_db.store.stored import BLOB, INT

PROMOTED = 20
"""Number of promoted tokens that the scores compare with (Arad et al. 2025: the top 20 of the logit lens)."""


def promoted_tokens(db: sqlite3.Connection, sae: int, n_features: int, *, top: int = PROMOTED) -> NDArray[np.int64]:
    """Ids of the `top` tokens that each feature's decoder direction promotes most, (F, top); -1 where it promotes fewer."""
    span = schema.feature_id(sae, 0), schema.feature_id(sae + 1, 0) - 1
    rows = token_lists.read(db, span, ["promotes"], what="the promoted tokens")
    best = rows.rank < top
    known = token_lists.terms(db, rows.term[best])
    tokens_FK = np.full((n_features, top), -1, np.int64)
    distinct, place = np.unique(rows.term[best], return_inverse=True)
    token = np.array([known[term].token for term in distinct.tolist()], object)
    if None in token:
        raise damaged("the promoted tokens", "a term is no token")
    tokens_FK[rows.feature[best] - span[0], rows.rank[best]] = token.astype(np.int64)[place]
    return tokens_FK


def input_scores(db: sqlite3.Connection, sae: int, promoted_FK: NDArray[np.int64]) -> NDArray[np.float64]:
    """The input score of every feature, (F,), 0 to 1: the share of its top examples whose peak is among its promoted tokens.

    S_in(f) = 1/|E_f| sum over e in E_f of [argmax token of e is in M_f], where E_f are the strongest examples (one a document)
    and M_f the tokens that the decoder direction promotes most (Arad et al. 2025, arXiv 2505.20063). It is high for a feature
    that promotes the tokens on which it fires. NaN for a feature without examples or promoted tokens.

    Args:
        db: a reading connection.
        sae: id of the dictionary.
        promoted_FK: from :func:`promoted_tokens`.
    """
    scores_F = np.full(len(promoted_FK), np.nan)
    first = schema.feature_id(sae, 0)
    sql = "SELECT feature, windows FROM example WHERE feature BETWEEN ? AND ?"
    for feature, windows in db.execute(sql, (first, schema.feature_id(sae + 1, 0) - 1)):
        stored.row("the examples", (feature, windows), INT, BLOB)
        peaks = [int(window.token_ids[window.peak]) for window in unpack(windows) if window.bucket == TOP]
        promoted = promoted_FK[feature - first]
        if peaks and promoted[0] >= 0:
            scores_F[feature - first] = np.isin(peaks, promoted[promoted >= 0]).mean()
    return scores_F
