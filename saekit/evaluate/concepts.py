"""Which known concepts a dictionary recovers: how well its best single feature tells a concept's tokens from all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from saekit.errors import CorpusError
from saekit.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from saekit.lab import Document, Labelled
    from saekit.lm import LanguageModel
    from saekit.lm.sites import Site
    from saekit.sae import SAE

RECOVERED = 0.9
"""The AUC from which a concept counts as recovered."""
_SEQUENCES = 64
_NONZEROS = 1 << 23
"""Activations that are ranked at once."""


@dataclass(frozen=True)
class Recovery:
    """One concept and its best feature.

    Attributes:
        auc: of the feature on documents that had no say in choosing it: the chance that a token of the concept makes it fire
            stronger than another token does, ties counting half.
        recall: share of the concept's tokens on which the feature fires.
        precision: share of the tokens on which it fires that are the concept's.
        tokens: of the concept, where it was measured.
    """

    concept: str
    feature: int
    auc: float
    recall: float
    precision: float
    tokens: int

    @property
    def recovered(self) -> bool:
        """Whether the feature is as good as asked."""
        return self.auc >= RECOVERED


@dataclass(frozen=True)
class Recoveries:
    """All concepts, the best recovered first; `missing` are those of fewer tokens than can be judged."""

    site: str
    found: tuple[Recovery, ...]
    missing: tuple[str, ...]
    tokens: int

    @property
    def median(self) -> float:
        """Median AUC of the concepts."""
        return float(np.median([each.auc for each in self.found])) if self.found else float("nan")

    @property
    def share(self) -> float:
        """Share of the concepts that are recovered."""
        return float(np.mean([each.recovered for each in self.found])) if self.found else float("nan")

    def quantiles(self) -> dict[str, float]:
        """AUC that so many percent of the concepts stay below."""
        aucs = [each.auc for each in self.found]
        return {f"{p}%": float(np.percentile(aucs, p)) for p in (0, 10, 25, 50, 75, 90)} if aucs else {}


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
    """The best feature of each concept, chosen on every other document and measured on those between.

    The negatives of a concept are all tokens that are not labelled with it; special tokens are left out. Each document is a
    context of its own, cut where the model's context ends.

    Args:
        documents: labelled, a few thousand.
        concepts: which; None is all.
        least: tokens that a concept must have in both halves.

    Raises:
        CorpusError: there are fewer than two documents.
        ConfigError: the tokenizer does not tell which characters a token covers.
    """
    from saekit.lab import label

    halves = [documents[0::2], documents[1::2]]
    if not halves[1]:
        raise CorpusError("Two documents at least are needed: one to choose features on, one to measure them.")
    labelled = [label(half, lm.text.tokenizer, concepts) for half in halves]
    total = sum(each.n_tokens for each in labelled)
    with track("reading", total=total, enabled=progress) as bar:
        acts, labels = [], []
        for n, half in enumerate(labelled):
            done = n * labelled[0].n_tokens
            codes, kept = _codes(lm, sae, lm.site(site), half, lambda tokens, done=done: bar.update(done + tokens))  # type: ignore[misc]
            acts.append(codes)
            labels.append(_labels(half)[kept])
        bar.update(total)
    names = np.array(labelled[0].concepts)
    counts = [each.sum(axis=0) for each in labels]
    enough = (counts[0] >= least) & (counts[1] >= least)
    best_C = auc(acts[0], labels[0]).argmax(axis=0)
    chosen_C = best_C[enough]
    chosen = acts[1][:, chosen_C]
    wanted = labels[1][:, enough.nonzero()[0]]
    auc_C = auc(chosen, wanted).diagonal()
    fires = chosen.copy()
    fires.data = np.ones(len(fires.data), np.int64)
    both_C = np.asarray((fires * wanted.tocsc()).sum(axis=0)).ravel() if len(chosen_C) else np.zeros(0)
    fired_C = np.diff(fires.indptr)
    n_C = counts[1][enough]
    found = [
        Recovery(str(name), int(f), float(a), float(b / n), float(b / max(1, k)), int(n))
        for name, f, a, b, k, n in zip(names[enough], chosen_C, auc_C, both_C, fired_C, n_C)
    ]
    found.sort(key=lambda each: (-each.auc, each.concept))
    return Recoveries(str(site), tuple(found), tuple(map(str, names[~enough])), total)


def concept_aucs(
    lm: LanguageModel,
    sae: SAE,
    site: Site | str,
    documents: Sequence[Document],
    concepts: Sequence[str],
    *,
    progress: bool = True,
) -> np.ndarray:
    """(F, C) how well each feature tells the tokens of each of `concepts` from all others: see :func:`auc`.

    Raises:
        ConfigError: the tokenizer does not tell which characters a token covers.
    """
    from saekit.lab import label

    labelled = label(documents, lm.text.tokenizer, concepts)
    with track("reading", total=labelled.n_tokens, enabled=progress) as bar:
        codes, kept = _codes(lm, sae, lm.site(site), labelled, bar.update)
    return auc(codes, _labels(labelled)[kept])


def auc(acts_NF: csc_array, labels_NC: csr_array) -> np.ndarray:
    """(F, C) area under the ROC curve of every feature for every concept: exact, ties counting half; NaN where all tokens or none
    are the concept's.

    The Mann-Whitney statistic: with R the sum over a concept's n tokens of their ranks by the feature's activation (ties share
    their mean rank), AUC = (R - n (n + 1) / 2) / (n (N - n)). Activations of zero all share one rank r0, so R = n r0 + the sum of
    (rank - r0) over nonzero ones: a product of two sparse matrices, and the ranks depend on no concept.
    """
    from scipy.sparse import csc_array

    acts_NF = csc_array(acts_NF)
    acts_NF.eliminate_zeros()
    N, F = acts_NF.shape
    n_C = np.asarray(labels_NC.sum(axis=0)).ravel().astype(np.float64)
    weights_NC = labels_NC.astype(np.float64)
    auc_FC = np.empty((F, len(n_C)))
    for start, stop in _blocks(acts_NF.indptr):
        block = acts_NF[:, start:stop]
        ranks, zero_F = _ranks(block.data, block.indptr, N)
        ranked = csc_array((ranks, block.indices, block.indptr), shape=block.shape)
        sums_FC = (ranked.T @ weights_NC).toarray() + zero_F[:, None] * n_C
        with np.errstate(divide="ignore", invalid="ignore"):
            auc_FC[start:stop] = (sums_FC - n_C * (n_C + 1) / 2) / (n_C * (N - n_C))
    auc_FC[:, (n_C == 0) | (n_C == N)] = np.nan
    return auc_FC


def _blocks(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of columns of about `_NONZEROS` together."""
    start, F = 0, len(indptr) - 1
    while start < F:
        stop = max(start + 1, int(np.searchsorted(indptr, indptr[start] + _NONZEROS, side="right")) - 1)
        yield start, stop
        start = stop


def _ranks(values: np.ndarray, indptr: np.ndarray, N: int) -> tuple[np.ndarray, np.ndarray]:
    """Of nonzero entries column by column: their mean ranks among all N less the rank of zeros; and the rank of zeros, (F,)."""
    count_F = np.diff(indptr)
    column = np.repeat(np.arange(len(count_F)), count_F)
    order = np.concatenate([np.arange(0), *(a + np.argsort(values[a:b]) for a, b in pairwise(indptr.tolist()))])
    ordered = values[order]
    new = np.ones(len(ordered), bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (column[1:] != column[:-1])
    first = new.nonzero()[0]
    size = np.diff(np.append(first, len(ordered)))
    negative_F = np.bincount(column[values < 0], minlength=len(count_F))
    zeros_F = N - count_F
    zero_F = negative_F + (zeros_F + 1) / 2
    home = column[first]  # columns stay where they were
    within = first - indptr[home] + (size + 1) / 2
    mean = within + np.where(ordered[first] > 0, zeros_F[home], 0)
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(mean - zero_F[home], size)
    return ranks, zero_F


def _labels(labelled: Labelled) -> csr_array:
    """(N, C) with 1 at labels."""
    from scipy.sparse import csr_array

    ones = np.ones(len(labelled.token_M), np.int64)
    return csr_array((ones, (labelled.token_M, labelled.concept_M)), shape=(labelled.n_tokens, len(labelled.concepts)))


@torch.no_grad()
def _codes(
    lm: LanguageModel, sae: SAE, site: Site, labelled: Labelled, note: Callable[[int], None]
) -> tuple[csc_array, np.ndarray]:
    """Activations of the features (kept tokens, F), and which tokens were kept."""
    from scipy.sparse import csc_array

    begin = np.cumsum([0, *map(len, labelled.ids)])
    order = sorted(range(len(labelled.ids)), key=lambda d: len(labelled.ids[d]))
    first = [] if lm.bos_token_id is None else [lm.bos_token_id]
    values, tokens, features, kept = ([np.zeros(0, kind)] for kind in (np.float32, np.int64, np.int64, np.int64))
    done = 0
    for start in range(0, len(order), _SEQUENCES):
        chosen = [d for d in order[start : start + _SEQUENCES] if labelled.ids[d]]
        rows = [[*first, *labelled.ids[d]][: lm.max_context] for d in chosen]
        if not rows:
            continue
        tokens_BT, mask_BT = lm.text.pad(rows, "right")
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site]
        mask_BT[:, : len(first)] = 0
        code = sae.encode_sparse(acts[mask_BT.bool().to(acts.device)].flatten(1))
        which = np.concatenate([begin[d] + np.arange(len(row) - len(first)) for d, row in zip(chosen, rows)])
        row, slot = (code.values != 0).nonzero(as_tuple=True)
        values.append(code.values[row, slot].float().cpu().numpy())
        features.append(code.indices[row, slot].cpu().numpy())
        tokens.append(which[row.cpu().numpy()])
        kept.append(which)
        done += len(which)
        note(done)
    shape = labelled.n_tokens, sae.cfg.n_latents
    codes = csc_array((np.concatenate(values), (np.concatenate(tokens), np.concatenate(features))), shape=shape)
    rows_kept = np.sort(np.concatenate(kept))
    return (codes if len(rows_kept) == labelled.n_tokens else csc_array(codes.tocsr()[rows_kept])), rows_kept
