"""Measures of the features of one dictionary, as the database takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class TokenRows(NamedTuple):
    """Rows of the table `token_stat` in one role for F features, K tokens each, the strongest first.

    tokens_FK: token ids; -1 where a feature has fewer.
    values_FK: the column `value`.
    rates_FK: the column `rate`; NaN for none.
    scores_FK: the column `score`, 0 to 1.
    """

    tokens_FK: NDArray[np.int64]
    values_FK: NDArray[np.floating[Any]]
    rates_FK: NDArray[np.floating[Any]]
    scores_FK: NDArray[np.floating[Any]]


class Partners(NamedTuple):
    """Rows of `partner` of one kind for F features, K partners each, the best first.

    others_FK: numbers of features; -1 where a feature has fewer.
    values_FK: the column `value`.
    together_FK, chance_FK: the columns of these names; None for kinds without them.
    """

    others_FK: NDArray[np.int64]
    values_FK: NDArray[np.floating[Any]]
    together_FK: NDArray[np.int64] | None = None
    chance_FK: NDArray[np.floating[Any]] | None = None


class CorpusLabels(NamedTuple):
    """Rows of `corpus_label` and `corpus_label_stat`: C labels, and M pairs of a feature and a label.

    level: `document` or `span`.
    names, positives_C: of each label, its name and the number of documents or tokens that have it.
    total: number of documents or tokens.
    features_M, labels_M: number of the feature, and index of the label.
    columns: the other columns of `corpus_label_stat` by name, (M,) each.
    """

    level: str
    names: Sequence[str]
    positives_C: Sequence[int]
    total: int
    features_M: NDArray[np.int64]
    labels_M: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Measured:
    """What one measurement found of all F features of a dictionary. It takes the place of an earlier one of its name."""

    name: str
    """`effects`, `logits`, `decoder`, ..."""
    settings: Mapping[str, Any]
    """Everything that the numbers depend on besides model, dictionary and corpus, as JSON values."""
    numbers: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    """Columns of `feature` by name, (F,); NaN where a feature has no number."""
    blobs: Mapping[str, Sequence[bytes | None]] = field(default_factory=dict)
    """Columns of `feature` with packed values, by name."""
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)
    """Rows of `token_stat` by role."""
    partners: Mapping[str, Partners] = field(default_factory=dict)
    """Rows of `partner` by kind."""
    labels: CorpusLabels | None = None
    """Labels of the corpus, and the features that tell them."""
