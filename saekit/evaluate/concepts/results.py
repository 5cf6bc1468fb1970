"""Results of concept recovery: the best features of all concepts, and what their AUCs alone would say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from saekit.evaluate.concepts.found import ENCODED, HIGH_AUC, LEXICAL, Context, Detector, Recovery, Words
from saekit.evaluate.report import Report, Section, decimals, too_few

__all__ = ["ENCODED", "HIGH_AUC", "LEXICAL", "Context", "Detector", "Recoveries", "Recovery", "Words"]

_HARD = {
    "auc_same_words": "against other occurrences of their words",
    "auc_in_context": "between occurrences of one and the same token",
    "auc_hard": "by the lower of these two",
}
"""Criteria that a feature does not meet if it knows words but no context."""
_SHARED = 3
"""Number of concepts from which a feature that is the best for all of them is named."""


@dataclass(frozen=True)
class Recoveries(Report):
    """All concepts, the best encoded first.

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
            "encoded": len(self.encoded),
            "share_encoded": self.share,
            "f1": self._summary_of("f1"),
            "median": self.median_of("auc"),
            "quantiles": self.quantiles("auc"),
            "outcomes": self.outcomes(),
            "by_auc": self._misled(),
            "contextual": {name: self._summary_of(name) for name in _HARD},
            "concepts": [one.to_dict() for one in self.found],
            "missing": list(self.missing),
        }

    def _summary_of(self, figure: str) -> dict[str, Any]:
        values = self.values(figure)
        bound = ENCODED if figure == "f1" else HIGH_AUC
        return {
            "concepts": len(values),
            "median": self.median_of(figure),
            "share_high": float(np.mean([value >= bound for value in values])) if values else math.nan,
            "quantiles": self.quantiles(figure),
        }

    def _misled(self) -> dict[str, Any]:
        """What the AUC alone would say."""
        high = [each for each in self.found if each.by_auc.auc >= HIGH_AUC]
        best_for = Counter(each.by_auc.feature for each in self.found)
        return {
            "high": len(high),
            "not_encoded": sum(not each.encoded for each in high),
            "median_precision": float(np.median([each.by_auc.precision for each in high])) if high else math.nan,
            "shared": {str(feature): n for feature, n in best_for.most_common() if n >= _SHARED},
        }

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A concept a row. Medians and shares over the concepts below, by each criterion."""
        lines = _summary(data)
        for criterion, what in _HARD.items():
            if (summary := data["contextual"][criterion])["concepts"]:
                share = f"{summary['share_high' if 'f1' in data else 'share_recovered']:.0%} at {HIGH_AUC} or more"
                lines.append(f"{summary['concepts']} concepts {what}: median AUC {summary['median']:.3f}, {share}")
                lines.append(_distribution(summary["quantiles"]))
        lines += too_few(data["missing"], "tokens")
        return Section(f"concepts at {data['site']}", [_row(each) for each in data["concepts"]], lines)

    def values(self, figure: str = "f1") -> list[float]:
        """A figure of all concepts for which it was measured.

        Args:
            figure: f1, auc (of the feature with the best AUC), lexical_auc, lexical_f1, auc_same_words, auc_in_context or
                auc_hard.
        """

        def value(each: Recovery) -> float:
            for holder in (each, each.words, each.context):
                if hasattr(holder, figure):
                    return float(getattr(holder, figure))
            return float(getattr(each.by_auc if figure == "auc" else each.best, figure))

        return [found for each in self.found if not math.isnan(found := value(each))]

    def median_of(self, figure: str) -> float:
        """Median of :meth:`values`."""
        values = self.values(figure)
        return float(np.median(values)) if values else math.nan

    @property
    def encoded(self) -> tuple[str, ...]:
        """Names of the concepts that a feature encodes, in alphabetical order."""
        return tuple(sorted(each.concept for each in self.found if each.encoded))

    @property
    def share(self) -> float:
        """Share of the concepts that a feature encodes."""
        return len(self.encoded) / len(self.found) if self.found else math.nan

    def quantiles(self, figure: str = "f1") -> dict[str, float]:
        """Percentiles of :meth:`values`."""
        values = self.values(figure)
        return {f"{p}%": float(np.percentile(values, p)) for p in (0, 10, 25, 50, 75, 90)} if values else {}

    def outcomes(self) -> dict[str, int]:
        """Number of concepts by outcome."""
        found = [each.outcome for each in self.found]
        return {name: found.count(name) for name in ("in context", "as words", "words at least", "words only", "no")}


def _summary(data: Mapping[str, Any]) -> list[str]:
    """Sentences on F1 and AUC. Data of earlier versions have AUC alone."""
    n, tokens = len(data["concepts"]), data["tokens"]
    counted = ", ".join(f"{name}: {count}" for name, count in data["outcomes"].items())
    if "f1" not in data:
        share = f"{data['share_recovered']:.0%} at {HIGH_AUC} or more"
        first = f"{n} concepts on {tokens:,} tokens: median AUC {data['median']:.3f}, {share}; F1 was not measured"
        return [first, _distribution(data["quantiles"]), f"recovered, by AUC {counted}"]
    auc = data["by_auc"]
    lines = [
        f"{data['encoded']} of {n} concepts are encoded: a feature detects them with F1 {ENCODED} or more on {tokens:,} tokens; "
        f"median F1 {data['f1']['median']:.3f}",
        _distribution(data["f1"]["quantiles"]),
        f"encoded {counted}",
        f"by AUC alone: median {data['median']:.3f}, {auc['high']} concepts at {HIGH_AUC} or more; "
        f"{auc['not_encoded']} of them are not encoded",
    ]
    if auc["high"]:
        lines.append(
            f"the features with these AUCs are right in {auc['median_precision']:.0%} of the tokens they fire on (median)"
        )
    if auc["shared"]:
        shared = ", ".join(f"#{feature} for {count}" for feature, count in auc["shared"].items())
        lines.append(f"one feature has the best AUC for several concepts: {shared}")
    return lines


def _distribution(quantiles: Mapping[str, float]) -> str:
    return ", ".join(f"{name} below {value:.3f}" for name, value in quantiles.items())


def _row(concept: Mapping[str, Any]) -> dict[str, Any]:
    def hard(name: str) -> str:
        feature = concept[f"feature_{name}"]
        return "–" if feature is None else f"{decimals(concept[f'auc_{name}'])} #{feature}"

    # Data of earlier versions have no F1; their feature is the one with the best AUC.
    auc = concept.get("by_auc", concept)
    others = f", best for {auc['serves']} more" if auc.get("serves") else ""
    return {
        "concept": concept["concept"],
        "F1": decimals(concept.get("f1")),
        "AP": decimals(concept.get("average_precision")),
        "AUC": decimals(concept["auc"]),
        "base rate": decimals(concept.get("base_rate"), 4),
        "feature": str(concept["feature"]),
        "serves": str(concept.get("serves", "–")),
        "recall": f"{concept['recall']:.0%}",
        "precision": f"{concept['precision']:.0%}",
        "tokens": concept["tokens"],
        "best AUC": f"{decimals(auc['auc'])} #{auc['feature']}, right in {auc['precision']:.0%}{others}",
        "F1 of words": decimals(concept.get("lexical_f1")),
        "same words": hard("same_words"),
        "in context": hard("in_context"),
        "encoded": concept["outcome"],
        "because": concept["reason"],
    }
