"""Which known concepts a dictionary recovers, by the feature that best distinguishes the tokens of the concept from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.errors import CorpusError
from saekit.evaluate.concepts.auc import auc, average_precision
from saekit.evaluate.concepts.codes import feature_codes, label_matrix
from saekit.evaluate.concepts.results import LEXICAL, Recoveries, Recovery
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
    """Find the best feature of each concept on every other document, and measure it on the remaining documents.

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
    best_C = auc(acts[0], labels[0]).argmax(axis=0)
    chosen_C = best_C[enough]
    chosen = acts[1][:, chosen_C]
    wanted = labels[1][:, enough.nonzero()[0]]
    auc_C, precision_C = auc(chosen, wanted).diagonal(), average_precision(chosen, wanted)
    fires = chosen.copy()
    fires.data = np.ones(len(fires.data), np.int64)
    both_C = np.asarray((fires * wanted.tocsc()).sum(axis=0)).ravel() if len(chosen_C) else np.zeros(0)
    fired_C = np.diff(fires.indptr)
    n_C = counts[1][enough]
    hard = _hard(acts, [each[:, enough.nonzero()[0]] for each in labels], ids, least)
    found = [
        Recovery(str(name), int(f), float(a), float(p), n / len(ids[1]), float(b / n), float(b / max(1, k)), int(n), **each)
        for name, f, a, p, b, k, n, each in zip(names[enough], chosen_C, auc_C, precision_C, both_C, fired_C, n_C, hard)
    ]
    found.sort(key=lambda each: (-each.auc, each.concept))
    return Recoveries(str(site), tuple(found), tuple(map(str, names[~enough])), total)


def _hard(acts: list[csc_array], labels: list[csr_array], ids: list[np.ndarray], least: int) -> list[dict[str, Any]]:
    """The facts of :class:`Recovery` that concern words and context. The first half chooses features, the second measures."""
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
    facts: list[dict[str, Any]] = [
        {"words": int(words), "label_share": float(share), "lexical_auc": float(lexical)}
        for words, share, lexical in zip(known_CV.sum(axis=1), share_C, lexical_C)
    ]

    for c in ((share_C < LEXICAL) & (hard_C >= least)).nonzero()[0]:
        rows = [known_CV[c, index_N].nonzero()[0] for index_N in ids]
        label_N1 = [each[:, [c]][row] for each, row in zip(labels, rows)]
        f = int(auc(_rows(acts[0], rows[0]), label_N1[0]).argmax())
        measured = auc(_rows(acts[1][:, [f]], rows[1]), label_N1[1])
        facts[c] |= {"auc_same_words": float(measured.item()), "feature_same_words": f}

    judged = ((share_C < LEXICAL) & (paired_C >= least)).nonzero()[0]
    best = auc(acts[0], labels[0][:, judged], ids[0]).argmax(axis=0)
    measured_C = auc(acts[1][:, best], labels[1][:, judged], ids[1]).diagonal()
    for c, f, value in zip(judged.tolist(), best.tolist(), measured_C.tolist()):
        facts[c] |= {"auc_in_context": value, "feature_in_context": f}
    return facts


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
