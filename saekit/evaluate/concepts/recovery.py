"""Which known concepts a dictionary encodes: the feature that detects the tokens of each concept with the best F1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saekit.errors import CorpusError
from saekit.evaluate.concepts.codes import feature_codes, label_matrix
from saekit.evaluate.concepts.f1 import Counts, best_thresholds, counts_of_pairs
from saekit.evaluate.concepts.results import LEXICAL, Context, Detector, Recoveries, Recovery, Words
from saekit.locate.magnitude.auc import auc, average_precision
from saekit.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from saekit.evaluate.subject import Subject
    from saekit.lab import Document
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE


def measure(subject: Subject) -> Recoveries:
    """The evaluation "concepts"."""
    where = (subject.lm, subject.sae, subject.one_site)
    return concept_recovery(*where, subject.laboratory, progress=subject.options.progress)


def concept_recovery(
    lm: LanguageModel,
    sae: SAE,
    site: Site | str,
    documents: Sequence[Document],
    *,
    concepts: Sequence[str] | None = None,
    least: int = 20,
    progress: bool = True,
) -> Recoveries:
    """Choose a feature and a threshold for each concept on every other document, and measure them on the remaining documents.

    The best F1 chooses. The feature with the best AUC is measured beside it, because an AUC alone misleads: it does not fall with
    the base rate of the concept.

    The negatives of a concept are all tokens without its label; special tokens are left out. Each document is a context of its
    own, cut where the model's context ends.

    Args:
        documents: labelled documents, a few thousand.
        concepts: names of concepts; None takes all.
        least: number of tokens that a concept must have in both halves. The hard comparisons need as many positives and
            negatives.

    Raises:
        CorpusError: there are fewer than two documents.
        ConfigError: the tokenizer gives no character offsets.
    """
    from saekit.lab import label

    halves = [documents[0::2], documents[1::2]]
    if not halves[1]:
        raise CorpusError("Two documents at least are needed: one to choose features on, one to measure them.")
    labelled = [label(half, lm.text.tokenizer, concepts) for half in halves]
    total = sum(each.n_tokens for each in labelled)
    with track("reading", total=total, enabled=progress) as bar:
        acts, labels, ids = [], [], []
        for n, half in enumerate(labelled):
            done = n * labelled[0].n_tokens
            codes, kept = feature_codes(lm, sae, lm.site(site), half, lambda tokens, done=done: bar.update(done + tokens))  # type: ignore[misc]
            acts.append(codes)
            labels.append(label_matrix(half)[kept])
            ids.append(np.array([index for row in half.ids for index in row], np.int64)[kept])
        bar.update(total)
    names = np.array(labelled[0].concepts)
    counts = [each.sum(axis=0) for each in labels]
    enough = (counts[0] >= least) & (counts[1] >= least)
    index_C = enough.nonzero()[0]
    labels = [each[:, index_C] for each in labels]
    f1_FC, threshold_FC = best_thresholds(acts[0], labels[0])
    by_f1_C = f1_FC.argmax(axis=0)
    best = _detectors(acts[1], labels[1], by_f1_C, threshold_FC[by_f1_C, np.arange(len(index_C))])
    by_auc_C = auc(acts[0], labels[0]).argmax(axis=0)
    by_auc = _detectors(acts[1], labels[1], by_auc_C, np.zeros(len(index_C)))
    words, contexts = _hard(acts, labels, ids, least)
    tokens_C = counts[1][index_C].tolist()
    found = [
        Recovery(str(name), one, other, tokens, tokens / len(ids[1]), own, context)
        for name, one, other, tokens, own, context in zip(names[index_C], best, by_auc, tokens_C, words, contexts)
    ]
    found.sort(key=lambda each: (-each.best.f1, each.concept))
    return Recoveries(str(site), tuple(found), tuple(map(str, names[~enough])), total)


def _detectors(acts_NF: csc_array, labels_NC: csr_array, feature_C: np.ndarray, threshold_C: np.ndarray) -> list[Detector]:
    """Measure feature c with threshold c as a detector of concept c."""
    acts_NC = acts_NF[:, feature_C]
    counts = counts_of_pairs(acts_NC, labels_NC, threshold_C)
    auc_C, precision_C = auc(acts_NC, labels_NC).diagonal(), average_precision(acts_NC, labels_NC)
    chosen_for = Counter(feature_C.tolist())
    serves_C = np.array([chosen_for[feature] - 1 for feature in feature_C.tolist()], np.int64)
    columns = (feature_C, threshold_C, counts.f1, counts.precision, counts.recall, auc_C, precision_C, serves_C)
    return [Detector(*row) for row in zip(*(each.tolist() for each in columns))]


def _hard(acts: list[csc_array], labels: list[csr_array], ids: list[np.ndarray], least: int) -> tuple[list[Words], list[Context]]:
    """The facts that concern words and context. The first half chooses features and words, the second measures."""
    V = 1 + max(each.max(initial=0) for each in ids)
    all_V = [np.bincount(each, minlength=V) for each in ids]
    own_CV = [_counts(each, index_N, V) for each, index_N in zip(labels, ids)]
    known_CV = (own_CV[0] + own_CV[1]) > 0
    other_CV = [known_CV * (total_V - own) for total_V, own in zip(all_V, own_CV)]
    share_C = sum(own.sum(axis=1) for own in own_CV) / np.maximum(1, known_CV @ (all_V[0] + all_V[1]))
    unlabelled_C = len(ids[1]) - own_CV[1].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lexical_C = 1 - other_CV[1].sum(axis=1) / unlabelled_C / 2
    hard_C = np.min([other.sum(axis=1) for other in other_CV], axis=0)
    # Number of tokens for which the other side has a token of the same id.
    paired_C = np.min([(a * (b > 0)).sum(axis=1) for x, y in zip(own_CV, other_CV) for a, b in ((x, y), (y, x))], axis=0)
    figures = zip(known_CV.sum(axis=1).tolist(), share_C.tolist(), lexical_C.tolist(), _word_f1(own_CV, all_V).tolist())
    same_words: dict[int, tuple[float, int]] = {}
    for c in ((share_C < LEXICAL) & (hard_C >= least)).nonzero()[0].tolist():
        rows = [known_CV[c, index_N].nonzero()[0] for index_N in ids]
        label_N1 = [each[:, [c]][row] for each, row in zip(labels, rows)]
        f = int(auc(_rows(acts[0], rows[0]), label_N1[0]).argmax())
        same_words[c] = float(auc(_rows(acts[1][:, [f]], rows[1]), label_N1[1]).item()), f

    judged = ((share_C < LEXICAL) & (paired_C >= least)).nonzero()[0]
    best = auc(acts[0], labels[0][:, judged], ids[0]).argmax(axis=0)
    measured_C = auc(acts[1][:, best], labels[1][:, judged], ids[1]).diagonal()
    in_context = dict(zip(judged.tolist(), zip(measured_C.tolist(), best.tolist())))
    nothing = (math.nan, None)
    contexts = [Context(*same_words.get(c, nothing), *in_context.get(c, nothing)) for c in range(len(share_C))]
    return [Words(*each) for each in figures], contexts


def _word_f1(own_CV: list[np.ndarray], all_V: list[np.ndarray]) -> np.ndarray:
    """(C,) F1 in the second half of the best rule "the token is one of these ids" of the first half.

    The best rule takes the ids with the largest share of labelled occurrences, down to some share.
    """
    found = np.zeros(len(own_CV[0]))
    for c, (own_V, later_V) in enumerate(zip(*own_CV)):
        ids = own_V.nonzero()[0]
        ids = ids[np.argsort(-own_V[ids] / all_V[0][ids], kind="stable")]
        if not len(ids):
            continue
        taken = Counts(own_V[ids].cumsum(), all_V[0][ids].cumsum(), own_V.sum()).f1.argmax() + 1
        rule = ids[:taken]
        found[c] = Counts(later_V[rule].sum(), all_V[1][rule].sum(), later_V.sum()).f1
    return found


def _counts(labels_NC: csr_array, ids_N: np.ndarray, V: int) -> np.ndarray:
    """(C, V) number of tokens by concept and token id."""
    token, concept = labels_NC.nonzero()
    C = labels_NC.shape[1]
    return np.bincount(concept.astype(np.int64) * V + ids_N[token], minlength=C * V).reshape(C, V)


def _rows(acts_NF: csc_array, rows: np.ndarray) -> csc_array:
    """The given rows, in ascending order, without conversion to CSR."""
    from scipy.sparse import csc_array

    kept_N = np.zeros(acts_NF.shape[0], bool)
    kept_N[rows] = True
    kept = kept_N[acts_NF.indices]
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[acts_NF.indptr]
    place_N = np.cumsum(kept_N) - 1
    return csc_array((acts_NF.data[kept], place_N[acts_NF.indices[kept]], indptr), shape=(len(rows), acts_NF.shape[1]))
