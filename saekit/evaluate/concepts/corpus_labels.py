"""How well each feature tells the labels that a corpus carries: of whole texts, or of spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saekit.evaluate.concepts.codes import feature_codes, label_matrix
from saekit.evaluate.concepts.f1 import best_thresholds, counts_of_all
from saekit.evaluate.dictionary.examples import labelled_tokens
from saekit.locate.magnitude.auc import auc
from saekit.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE
    from saekit.tasks import Labelled


class LabelStats(NamedTuple):
    """F features as detectors of C labels.

    level: `document`, where an example is a text and its activation the largest one on it; or `span`: an example is a token.
    names: the labels, in alphabetical order.
    positives_C: number of examples with the label.
    total: number of examples.
    auc_FC: area under the ROC curve on all examples; .5 for a feature that says nothing.
    f1_FC, precision_FC, recall_FC: of "the activation is at least the threshold", on every other text.
    threshold_FC: the one with the best F1 on the remaining texts; inf where the feature fires on no example of the label.
    difference_FC: mean activation of the examples with the label minus that of the others.
    """

    level: str
    names: tuple[str, ...]
    positives_C: np.ndarray
    total: int
    auc_FC: np.ndarray
    f1_FC: np.ndarray
    precision_FC: np.ndarray
    recall_FC: np.ndarray
    threshold_FC: np.ndarray
    difference_FC: np.ndarray


def label_stats(lm: LanguageModel, sae: SAE, site: Site, labelled: Labelled, *, progress: bool = True) -> LabelStats:
    """Run the model on labelled texts, and measure every feature for every label.

    Each text is a context of its own, cut where the model's context ends; special tokens are left out.

    Args:
        lm, sae, site: the model, the dictionary and the site that it reads.
        labelled: texts with labels or spans.
        progress: show a progress bar.

    Raises:
        ConfigError: there are spans, and the tokenizer gives no character offsets.
    """
    tokens = labelled_tokens(labelled, lm.text.tokenizer)
    with track("reading", total=tokens.n_tokens, subject="labelled texts", enabled=progress) as bar:
        acts_NF, kept = feature_codes(lm, sae, site, tokens, bar.update)
    document_N = np.repeat(np.arange(len(tokens.ids)), [len(row) for row in tokens.ids])[kept]
    if labelled.labels is None:
        return _stats("span", labelled.concepts, acts_NF, label_matrix(tokens)[kept], document_N)
    number = {name: i for i, name in enumerate(labelled.concepts)}
    of_D = np.array([number[name] for name in labelled.labels])
    documents = np.arange(len(of_D))
    return _stats("document", labelled.concepts, _largest(acts_NF, document_N, len(of_D)), _one_hot(of_D, len(number)), documents)


def _stats(level: str, names: tuple[str, ...], acts_NF: csc_array, labels_NC: csr_array, document_N: np.ndarray) -> LabelStats:
    rows, even_N = acts_NF.tocsr(), document_N % 2 == 0
    _, threshold_FC = best_thresholds(rows[even_N].tocsc(), labels_NC[even_N])
    counts = counts_of_all(rows[~even_N].tocsc(), labels_NC[~even_N], threshold_FC)
    members_C = np.asarray(labels_NC.sum(axis=0)).ravel()
    with_FC = (acts_NF.T @ labels_NC.astype(np.float64)).toarray()
    total_F = np.asarray(acts_NF.sum(axis=0)).ravel()
    others_C = acts_NF.shape[0] - members_C
    difference_FC = with_FC / np.maximum(members_C, 1) - (total_F[:, None] - with_FC) / np.maximum(others_C, 1)
    auc_FC = np.nan_to_num(auc(acts_NF, labels_NC), nan=0.5)
    found = (auc_FC, counts.f1, counts.precision, counts.recall, threshold_FC, difference_FC)
    return LabelStats(level, names, members_C, acts_NF.shape[0], *found)


def _largest(acts_NF: csc_array, document_N: np.ndarray, n_documents: int) -> csc_array:
    """(D, F) the largest activation of each feature on each text."""
    from scipy.sparse import csc_array

    feature = np.repeat(np.arange(acts_NF.shape[1]), np.diff(acts_NF.indptr))
    key = feature * n_documents + document_N[acts_NF.indices]
    order = np.argsort(key, kind="stable")
    different, begins = np.unique(key[order], return_index=True)
    largest = np.maximum.reduceat(acts_NF.data[order], begins) if len(begins) else np.zeros(0, np.float32)
    return csc_array((largest, (different % n_documents, different // n_documents)), shape=(n_documents, acts_NF.shape[1]))


def _one_hot(of_D: np.ndarray, count: int) -> csr_array:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(of_D), np.int64), (np.arange(len(of_D)), of_D)), shape=(len(of_D), count))
