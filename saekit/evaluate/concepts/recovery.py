"""Which known concepts a dictionary recovers: how well its best single feature tells a concept's tokens from all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from saekit.errors import CorpusError
from saekit.evaluate.concepts.auc import auc, average_precision
from saekit.evaluate.report import Report, Section
from saekit.lm.run.batches import document_activations
from saekit.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from saekit.evaluate.subject import Subject
    from saekit.lab import Document, Labelled
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

RECOVERED = 0.9
"""The AUC from which a concept counts as recovered."""
_SEQUENCES = 64
LEXICAL = 0.98
"""Share of the occurrences of a concept's tokens that carry its label, from which the words alone are the concept."""
_HARD = {
    "auc_same_words": "against other occurrences of their words",
    "auc_in_context": "between occurrences of one and the same token",
    "auc_hard": "by the lower of these two",
}
"""Criteria that a feature which knows the words only does not meet."""
_DERIVED = ("recovered", "lexical", "contextual", "auc_hard", "outcome", "reason")
_FEW = 100
_RARELY = 0.5


@dataclass(frozen=True)
class Recovery:
    """One concept and its best features. Every AUC is measured on documents that had no say in choosing its feature;
    ties count half.

    Attributes:
        auc: of `feature`: the chance that it fires more strongly on a random token of the concept than on a random other token.
        average_precision: of `feature` (:func:`saekit.evaluate.concepts.auc.average_precision`); to compare with `base_rate`.
        base_rate: share of the tokens that are the concept's.
        recall: share of the concept's tokens on which `feature` fires.
        precision: share of the tokens on which `feature` fires that are the concept's.
        tokens: of the concept, where it was measured.
        words: how many token ids the concept's tokens have.
        label_share: how many occurrences of these ids are the concept's.
        lexical_auc: of the rule "is one of these ids", which knows all of them and no context: what `auc` must be compared with.
        auc_same_words: of `feature_same_words`, the best against hard negatives only: other tokens of these ids. A feature that
            fires on those of the ids that are mostly the concept's exceeds 0.5 here and knows no context.
        auc_in_context: of `feature_in_context`, the best at telling a token of the concept from another occurrence of the same
            id: what depends on the id alone has 0.5.

    The last two are NaN, and their features None, where the concept is lexical or there is too little to compare.
    """

    concept: str
    feature: int
    auc: float
    average_precision: float
    base_rate: float
    recall: float
    precision: float
    tokens: int
    words: int
    label_share: float
    lexical_auc: float
    auc_same_words: float = math.nan
    feature_same_words: int | None = None
    auc_in_context: float = math.nan
    feature_in_context: int | None = None

    @property
    def recovered(self) -> bool:
        """Whether the feature is as good as asked at telling the concept's tokens from all others, be it by the words alone."""
        return self.auc >= RECOVERED

    @property
    def lexical(self) -> bool:
        """Whether the words alone are the concept: (nearly) all their occurrences carry its label."""
        return self.label_share >= LEXICAL

    @property
    def contextual(self) -> bool:
        """Whether it could be measured that a feature knows more than the words."""
        return not math.isnan(self.auc_in_context)

    @property
    def auc_hard(self) -> float:
        """The lower of the two hard criteria. The first falls where a feature misses most of the concept, although it is right
        about a frequent token such as the full stop; the second where it knows tokens only. NaN where it cannot be judged."""
        return min(self.auc_same_words, self.auc_in_context) if self.contextual else math.nan

    @property
    def outcome(self) -> str:
        """How it is recovered: "in context" (features tell its tokens from the same words elsewhere, by both hard criteria), "as
        words" (the words are the concept, and a feature has them), "words only" (a feature has the words, none the context),
        "words at least" (the context cannot be judged here) or "no"."""
        if self.auc_hard >= RECOVERED:
            return "in context"
        if not self.recovered:
            return "no"
        return "as words" if self.lexical else "words only" if self.contextual else "words at least"

    @property
    def reason(self) -> str:
        """Why it is not recovered as what it is, as far as the numbers tell; empty where it is."""
        if self.outcome not in ("no", "words only"):
            return ""
        from saekit.lab import CONCEPTS

        reasons = []
        if self.concept in CONCEPTS and CONCEPTS[self.concept].kind == "region":
            reasons.append(f"a region of {self.words} different tokens")
        if self.tokens < _FEW:
            reasons.append(f"few tokens ({self.tokens})")
        if self.contextual:
            reasons.append(f"context: {self.label_share:.0%} of its words' occurrences, told apart with AUC {self.auc_hard:.2f}")
        if not self.recovered and self.recall < _RARELY:
            over = f"spread over {self.words} tokens" if self.words > 1 else "one token"
            reasons.append(f"{over}: the best feature fires on {self.recall:.0%}")
        return "; ".join(reasons) or f"the best feature fires on {self.recall:.0%}, and is right in {self.precision:.0%}"


@dataclass(frozen=True)
class Recoveries(Report):
    """All concepts, the best recovered first.

    Attributes:
        site: where the dictionary reads.
        found: one entry for each concept.
        missing: concepts of fewer tokens than can be judged.
        tokens: number of tokens.
    """

    name: ClassVar[str] = "concepts"
    site: str
    found: tuple[Recovery, ...]
    missing: tuple[str, ...]
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "site": self.site,
            "tokens": self.tokens,
            "median": self.median,
            "share_recovered": self.share,
            "quantiles": self.quantiles(),
            "outcomes": self.outcomes(),
            "contextual": {name: self._summary_of(name) for name in _HARD},
            "concepts": [{**asdict(one)} | {name: getattr(one, name) for name in _DERIVED} for one in self.found],
            "missing": list(self.missing),
        }

    def _summary_of(self, criterion: str) -> dict[str, Any]:
        return {
            "concepts": len(self.aucs(criterion)),
            "median": self.median_of(criterion),
            "share_recovered": self.share_of(criterion),
            "quantiles": self.quantiles(criterion),
        }

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A concept a row. Medians and shares over the concepts below, by each criterion."""
        recovered = ", ".join(f"{name}: {count}" for name, count in data["outcomes"].items())
        n, tokens, share = len(data["concepts"]), data["tokens"], data["share_recovered"]
        lines = [
            f"{n} concepts on {tokens:,} tokens: median AUC {data['median']:.3f}, {share:.0%} recovered",
            _distribution(data["quantiles"]),
            f"recovered {recovered}",
        ]
        for criterion, what in _HARD.items():
            if (summary := data["contextual"][criterion])["concepts"]:
                lines.append(
                    f"{summary['concepts']} concepts {what}: median AUC {summary['median']:.3f}, "
                    f"{summary['share_recovered']:.0%} at {RECOVERED} or more"
                )
                lines.append(_distribution(summary["quantiles"]))
        lines += [f"too few tokens to judge: {', '.join(data['missing'])}"] * bool(data["missing"])
        return Section(f"concepts at {data['site']}", [_row(each) for each in data["concepts"]], lines)

    def aucs(self, criterion: str = "auc") -> list[float]:
        """Of the concepts that have one. `criterion`: auc, lexical_auc, auc_same_words, auc_in_context or auc_hard."""
        return [value for each in self.found if not math.isnan(value := getattr(each, criterion))]

    def median_of(self, criterion: str) -> float:
        """Median of :meth:`aucs`."""
        aucs = self.aucs(criterion)
        return float(np.median(aucs)) if aucs else math.nan

    def share_of(self, criterion: str) -> float:
        """Share of :meth:`aucs` that is as high as asked."""
        aucs = self.aucs(criterion)
        return float(np.mean([value >= RECOVERED for value in aucs])) if aucs else math.nan

    @property
    def median(self) -> float:
        """Median AUC of the concepts."""
        return self.median_of("auc")

    @property
    def share(self) -> float:
        """Share of the concepts that are recovered, be it as words."""
        return self.share_of("auc")

    def quantiles(self, criterion: str = "auc") -> dict[str, float]:
        """AUC that so many percent of the concepts stay below."""
        aucs = self.aucs(criterion)
        return {f"{p}%": float(np.percentile(aucs, p)) for p in (0, 10, 25, 50, 75, 90)} if aucs else {}

    def outcomes(self) -> dict[str, int]:
        """How many concepts are recovered in which way."""
        found = [each.outcome for each in self.found]
        return {name: found.count(name) for name in ("in context", "as words", "words at least", "words only", "no")}


def _distribution(quantiles: Mapping[str, float]) -> str:
    return ", ".join(f"{name} below {value:.3f}" for name, value in quantiles.items())


def _row(concept: Mapping[str, Any]) -> dict[str, Any]:
    def hard(name: str) -> str:
        feature = concept[f"feature_{name}"]
        return "–" if feature is None else f"{concept[f'auc_{name}']:.3f} #{feature}"

    return {
        "concept": concept["concept"],
        "AUC": f"{concept['auc']:.3f}",
        "AP": f"{concept.get('average_precision', math.nan):.3f}",
        "base rate": f"{concept.get('base_rate', math.nan):.4f}",
        "feature": str(concept["feature"]),
        "recall": f"{concept['recall']:.0%}",
        "precision": f"{concept['precision']:.0%}",
        "tokens": concept["tokens"],
        "words": f"{concept['lexical_auc']:.3f}",
        "same words": hard("same_words"),
        "in context": hard("in_context"),
        "recovered": concept["outcome"],
        "because": concept["reason"],
    }


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
    """The best feature of each concept, chosen on every other document and measured on those between.

    The negatives of a concept are all tokens that are not labelled with it; special tokens are left out. Each document is a
    context of its own, cut where the model's context ends.

    Args:
        documents: labelled, a few thousand.
        concepts: which; None is all.
        least: tokens that a concept must have in both halves; and for the hard comparisons, as many on either side of them.

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
        acts, labels, ids = [], [], []
        for n, half in enumerate(labelled):
            done = n * labelled[0].n_tokens
            codes, kept = _codes(lm, sae, lm.site(site), half, lambda tokens, done=done: bar.update(done + tokens))  # type: ignore[misc]
            acts.append(codes)
            labels.append(_labels(half)[kept])
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
    """Measure how well each feature tells the tokens of each of `concepts` from all others.

    Raises:
        ConfigError: the tokenizer does not tell which characters a token covers.
    """
    from saekit.lab import label

    labelled = label(documents, lm.text.tokenizer, concepts)
    with track("reading", total=labelled.n_tokens, enabled=progress) as bar:
        codes, kept = _codes(lm, sae, lm.site(site), labelled, bar.update)
    return Detection(labelled.concepts, codes, _labels(labelled)[kept])


def _hard(acts: list[csc_array], labels: list[csr_array], ids: list[np.ndarray], least: int) -> list[dict[str, Any]]:
    """What :class:`Recovery` tells of the words of each concept: of two halves, the first chooses and the second measures."""
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
    # Tokens that have a token of the same id on the other side.
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
    """(C, V) how many tokens of each id each concept has."""
    token, concept = labels_NC.nonzero()
    C = labels_NC.shape[1]
    return np.bincount(concept.astype(np.int64) * V + ids_N[token], minlength=C * V).reshape(C, V)


def _rows(acts_NF: csc_array, rows: np.ndarray) -> csc_array:
    """Some tokens, in ascending order; the activations need not be turned to rows for that."""
    from scipy.sparse import csc_array

    kept_N = np.zeros(acts_NF.shape[0], bool)
    kept_N[rows] = True
    kept = kept_N[acts_NF.indices]
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[acts_NF.indptr]
    place_N = np.cumsum(kept_N) - 1
    return csc_array((acts_NF.data[kept], place_N[acts_NF.indices[kept]], indptr), shape=(len(rows), acts_NF.shape[1]))


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

    values, tokens, features, kept = ([np.zeros(0, kind)] for kind in (np.float32, np.int64, np.int64, np.int64))
    done = 0
    for which, acts in document_activations(lm, [site], labelled.ids, _SEQUENCES):
        code = sae.encode_sparse(acts[site])
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
