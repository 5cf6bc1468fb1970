"""How well features detect the tokens of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saekit.evaluate.concepts.auc import auc, average_precision
from saekit.evaluate.concepts.codes import feature_codes, label_matrix
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
        auc_FC: (F, C) area under the ROC curve (:func:`saekit.evaluate.concepts.auc.auc`).
        base_rate_C: (C,) share of the tokens that are the concept's.
    """

    def __init__(self, concepts: Sequence[str], acts_NF: csc_array, labels_NC: csr_array) -> None:
        self.concepts, self._acts_NF, self._labels_NC = tuple(concepts), acts_NF, labels_NC
        self.auc_FC = auc(acts_NF, labels_NC)
        self.base_rate_C = np.asarray(labels_NC.sum(axis=0)).ravel() / max(1, acts_NF.shape[0])

    def average_precision(self, feature: int, concept: str) -> float:
        """Average precision of a feature for a concept (:func:`saekit.evaluate.concepts.auc.average_precision`)."""
        c = self.concepts.index(concept)
        return float(average_precision(self._acts_NF[:, [feature]], self._labels_NC[:, [c]]).item())


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
    return Detection(labelled.concepts, codes, label_matrix(labelled)[kept])
