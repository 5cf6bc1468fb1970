"""Results of concept recovery: the best feature of each concept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from saekit.evaluate.report import Report, Section, decimals, too_few

RECOVERED = 0.9
"""The AUC from which a concept counts as recovered."""
LEXICAL = 0.98
"""A concept is lexical if at least this share of the occurrences of its token ids carry its label."""
_HARD = {
    "auc_same_words": "against other occurrences of their words",
    "auc_in_context": "between occurrences of one and the same token",
    "auc_hard": "by the lower of these two",
}
"""Criteria that a feature does not meet if it knows words but no context."""
_DERIVED = ("recovered", "lexical", "contextual", "auc_hard", "outcome", "reason")
_FEW = 100
_RARELY = 0.5


@dataclass(frozen=True)
class Recovery:
    """One concept and its best features. Every AUC is measured on documents that were not used to choose the feature. Ties count
    half.

    Attributes:
        auc: of `feature`: the chance that it fires more strongly on a random token of the concept than on a random other token.
        average_precision: of `feature` (:func:`saekit.evaluate.concepts.auc.average_precision`); to compare with `base_rate`.
        base_rate: share of the tokens that are the concept's.
        recall: share of the concept's tokens on which `feature` fires.
        precision: share of the tokens on which `feature` fires that are the concept's.
        tokens: number of the concept's tokens in the documents measured.
        words: number of distinct token ids among the concept's tokens.
        label_share: share of the occurrences of these ids that are the concept's.
        lexical_auc: AUC of the rule "is one of these ids", which uses no context. Compare `auc` with it.
        auc_same_words: AUC of `feature_same_words` with hard negatives only: other occurrences of these ids.
            `feature_same_words` is the best feature by this measure. A feature exceeds 0.5 here without any context if it fires
            on those ids that are mostly the concept's.
        auc_in_context: AUC of `feature_in_context` between occurrences of one and the same id. A feature that depends on the id
            alone has 0.5.

    The last two are NaN, and their features None, if the concept is lexical or if there are too few tokens to compare.
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
        """Whether `auc` is at least `RECOVERED`, with or without context."""
        return self.auc >= RECOVERED

    @property
    def lexical(self) -> bool:
        """Whether (nearly) all occurrences of the concept's token ids carry its label."""
        return self.label_share >= LEXICAL

    @property
    def contextual(self) -> bool:
        """Whether the use of context could be measured."""
        return not math.isnan(self.auc_in_context)

    @property
    def auc_hard(self) -> float:
        """The lower of the two hard criteria; NaN if the use of context could not be measured.

        `auc_same_words` is low if a feature misses most of the concept, even if it is right about a frequent token such as the
        full stop. `auc_in_context` is low if a feature knows token ids only.
        """
        return min(self.auc_same_words, self.auc_in_context) if self.contextual else math.nan

    @property
    def outcome(self) -> str:
        """How the concept is recovered.

        - "in context": features distinguish its tokens from the same words elsewhere, by both hard criteria
        - "as words": the concept is lexical, and a feature has its words
        - "words only": a feature has the words, but no feature has the context
        - "words at least": a feature has the words; the use of context could not be measured
        - "no": it is not recovered
        """
        if self.auc_hard >= RECOVERED:
            return "in context"
        if not self.recovered:
            return "no"
        return "as words" if self.lexical else "words only" if self.contextual else "words at least"

    @property
    def reason(self) -> str:
        """The reason why the concept is not recovered, if the numbers show one; empty if the concept is recovered."""
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
        lines += too_few(data["missing"], "tokens")
        return Section(f"concepts at {data['site']}", [_row(each) for each in data["concepts"]], lines)

    def aucs(self, criterion: str = "auc") -> list[float]:
        """The AUCs of all concepts for which this one was measured.

        Args:
            criterion: auc, lexical_auc, auc_same_words, auc_in_context or auc_hard.
        """
        return [value for each in self.found if not math.isnan(value := getattr(each, criterion))]

    def median_of(self, criterion: str) -> float:
        """Median of :meth:`aucs`."""
        aucs = self.aucs(criterion)
        return float(np.median(aucs)) if aucs else math.nan

    def share_of(self, criterion: str) -> float:
        """Share of :meth:`aucs` that is at least `RECOVERED`."""
        aucs = self.aucs(criterion)
        return float(np.mean([value >= RECOVERED for value in aucs])) if aucs else math.nan

    @property
    def median(self) -> float:
        """Median AUC of the concepts."""
        return self.median_of("auc")

    @property
    def share(self) -> float:
        """Share of the concepts whose `auc` is at least `RECOVERED`."""
        return self.share_of("auc")

    def quantiles(self, criterion: str = "auc") -> dict[str, float]:
        """Percentiles of :meth:`aucs`."""
        aucs = self.aucs(criterion)
        return {f"{p}%": float(np.percentile(aucs, p)) for p in (0, 10, 25, 50, 75, 90)} if aucs else {}

    def outcomes(self) -> dict[str, int]:
        """Number of concepts by outcome."""
        found = [each.outcome for each in self.found]
        return {name: found.count(name) for name in ("in context", "as words", "words at least", "words only", "no")}


def _distribution(quantiles: Mapping[str, float]) -> str:
    return ", ".join(f"{name} below {value:.3f}" for name, value in quantiles.items())


def _row(concept: Mapping[str, Any]) -> dict[str, Any]:
    def hard(name: str) -> str:
        feature = concept[f"feature_{name}"]
        return "–" if feature is None else f"{decimals(concept[f'auc_{name}'])} #{feature}"

    return {
        "concept": concept["concept"],
        "AUC": decimals(concept["auc"]),
        "AP": decimals(concept.get("average_precision")),
        "base rate": decimals(concept.get("base_rate"), 4),
        "feature": str(concept["feature"]),
        "recall": f"{concept['recall']:.0%}",
        "precision": f"{concept['precision']:.0%}",
        "tokens": concept["tokens"],
        "words": decimals(concept["lexical_auc"]),
        "same words": hard("same_words"),
        "in context": hard("in_context"),
        "recovered": concept["outcome"],
        "because": concept["reason"],
    }
