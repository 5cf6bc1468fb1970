"""How well features detect the tokens of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saekit.evaluate.concepts.codes import feature_codes, label_matrix
from saekit.evaluate.concepts.f1 import best_thresholds, counts_of_all
from saekit.locate.magnitude.auc import auc, average_precision
from saekit.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from saekit.lab import Document
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE


class Detection:
    """How well features tell the tokens of concepts from all other tokens.

    Attributes:
        concepts: their names.
        f1_FC: (F, C) F1 of every feature on every other document, where the threshold is the best one on the remaining documents.
        auc_FC: (F, C) area under the ROC curve on all documents (:func:`saekit.locate.magnitude.auc.auc`).
        base_rate_C: (C,) share of the tokens that are the concept's.
    """

    def __init__(self, concepts: Sequence[str], acts_NF: csc_array, labels_NC: csr_array, document_N: np.ndarray) -> None:
        """Measure all features.

        Args:
            document_N: the document of each token. Those of even number choose the thresholds; F1 is measured on the others.
        """
        self.concepts, self._acts_NF, self._labels_NC = tuple(concepts), acts_NF, labels_NC
        self.f1_FC = detected_f1(acts_NF, labels_NC, document_N)
        self.auc_FC = auc(acts_NF, labels_NC)
        self.base_rate_C = np.asarray(labels_NC.sum(axis=0)).ravel() / max(1, acts_NF.shape[0])

    def average_precision(self, feature: int, concept: str) -> float:
        """Average precision of a feature for a concept (:func:`saekit.locate.magnitude.auc.average_precision`)."""
        c = self.concepts.index(concept)
        return float(average_precision(self._acts_NF[:, [feature]], self._labels_NC[:, [c]]).item())


def detected_f1(acts_NF: csc_array, labels_NC: csr_array, document_N: np.ndarray) -> np.ndarray:
    """(F, C) F1 of every feature as a detector of every concept on the documents of odd number.

    The threshold of each pair is the best one on the documents of even number.
    """
    rows, even_N = acts_NF.tocsr(), document_N % 2 == 0
    _, threshold_FC = best_thresholds(rows[even_N].tocsc(), labels_NC[even_N])
    return counts_of_all(rows[~even_N].tocsc(), labels_NC[~even_N], threshold_FC).f1


def concept_detection(
    lm: LanguageModel,
    sae: SAE,
    site: Site | str,
    documents: Sequence[Document],
    concepts: Sequence[str],
    *,
    progress: bool = True,
) -> Detection:
    """Measure how well each feature distinguishes the tokens of each of `concepts` from all other tokens.

    Raises:
        ConfigError: the tokenizer gives no character offsets.
    """
    from saekit.lab import label

    labelled = label(documents, lm.text.tokenizer, concepts)
    with track("reading", total=labelled.n_tokens, enabled=progress) as bar:
        codes, kept = feature_codes(lm, sae, lm.site(site), labelled, bar.update)
    document_N = np.repeat(np.arange(len(labelled.ids)), [len(row) for row in labelled.ids])
    return Detection(labelled.concepts, codes, label_matrix(labelled)[kept], document_N[kept])
