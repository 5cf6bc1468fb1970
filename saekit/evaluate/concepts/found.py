"""One concept and the features that detect it best, by F1 and by AUC."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

ENCODED = 0.5
"""The F1 from which a feature encodes a concept."""
HIGH_AUC = 0.9
"""The AUC that is high. By the hard criteria, features use context from here. Against all other tokens a high AUC proves little,
because a broad feature reaches it too."""
LEXICAL = 0.98
"""A concept is lexical if at least this share of the occurrences of its token ids carry its label."""
_DERIVED = ("encoded", "lexical", "contextual", "auc_hard", "outcome", "reason")
_FEW = 100
_RARELY = 0.5


@dataclass(frozen=True)
class Detector:
    """A feature that detects a concept where its activation reaches a threshold.

    The feature and the threshold are chosen on documents of their own; all figures are measured on the others.

    Attributes:
        feature: its number.
        threshold: smallest activation at which the concept is detected; 0 stands for any activation above zero.
        f1: harmonic mean of precision and recall.
        precision: share of the detected tokens that are the concept's.
        recall: share of the concept's tokens that are detected.
        auc: chance that the feature fires more strongly on a random token of the concept than on a random other token. Ties count
            half. The threshold plays no part.
        average_precision: of the feature without the threshold (:func:`saekit.locate.magnitude.auc.average_precision`); to
            compare with the base rate of the concept.
        serves: number of other concepts for which the same feature is chosen.
    """

    feature: int
    threshold: float
    f1: float
    precision: float
    recall: float
    auc: float
    average_precision: float
    serves: int = 0


@dataclass(frozen=True)
class Words:
    """What the token ids of a concept say without any feature.

    Attributes:
        words: number of distinct token ids among the concept's tokens.
        label_share: share of the occurrences of these ids that are the concept's.
        lexical_auc: AUC of the rule "is one of these ids", which uses no context. Compare the AUC of a feature with it.
        lexical_f1: F1 of the best rule "is one of some of these ids". The ids are chosen on other documents, as thresholds are. A
            feature with a higher F1 uses context.
    """

    words: int
    label_share: float
    lexical_auc: float
    lexical_f1: float


@dataclass(frozen=True)
class Context:
    """Whether features use context. NaN and None if the concept is lexical or if there are too few tokens to compare.

    Attributes:
        auc_same_words: AUC of `feature_same_words` with hard negatives only: other occurrences of the concept's token ids.
            `feature_same_words` is the best feature by this measure. A feature exceeds 0.5 here without any context if it fires
            on those ids that are mostly the concept's.
        auc_in_context: AUC of `feature_in_context` between occurrences of one and the same id. A feature that depends on the id
            alone has 0.5.
    """

    auc_same_words: float = math.nan
    feature_same_words: int | None = None
    auc_in_context: float = math.nan
    feature_in_context: int | None = None


@dataclass(frozen=True)
class Recovery:
    """One concept and its best features, measured on documents that were not used to choose them.

    Attributes:
        best: the feature and the threshold with the best F1.
        by_auc: the feature with the best AUC, at any activation above zero. An AUC does not fall with the base rate, so a broad
            feature can have a high one although nearly all of the tokens on which it fires are others.
        tokens: number of the concept's tokens in the documents measured.
        base_rate: share of the tokens that are the concept's.
    """

    concept: str
    best: Detector
    by_auc: Detector
    tokens: int
    base_rate: float
    words: Words
    context: Context = Context()

    @property
    def encoded(self) -> bool:
        """Whether a feature encodes the concept: its F1 is at least `ENCODED`."""
        return self.best.f1 >= ENCODED

    @property
    def lexical(self) -> bool:
        """Whether (nearly) all occurrences of the concept's token ids carry its label."""
        return self.words.label_share >= LEXICAL

    @property
    def contextual(self) -> bool:
        """Whether the use of context could be measured."""
        return not math.isnan(self.context.auc_in_context)

    @property
    def auc_hard(self) -> float:
        """The lower of the two hard criteria; NaN if the use of context could not be measured.

        `auc_same_words` is low if a feature misses most of the concept, even if it is right about a frequent token such as the
        full stop. `auc_in_context` is low if a feature knows token ids only.
        """
        return min(self.context.auc_same_words, self.context.auc_in_context) if self.contextual else math.nan

    @property
    def outcome(self) -> str:
        """How the concept is encoded.

        - "in context": features also distinguish its tokens from the same words elsewhere, by both hard criteria
        - "as words": the concept is lexical, and a feature has its words
        - "words only": a feature has the words, but no feature has the context
        - "words at least": a feature has the words; the use of context could not be measured
        - "no": no feature encodes it
        """
        if not self.encoded:
            return "no"
        if self.auc_hard >= HIGH_AUC:
            return "in context"
        return "as words" if self.lexical else "words only" if self.contextual else "words at least"

    @property
    def reason(self) -> str:
        """The reason why the concept or its context is not encoded, if the numbers show one; else empty."""
        if self.outcome not in ("no", "words only"):
            return ""
        from saekit.lab import CONCEPTS

        reasons = []
        words, best = self.words.words, self.best
        if self.concept in CONCEPTS and CONCEPTS[self.concept].kind == "region":
            reasons.append(f"a region of {words} different tokens")
        if self.tokens < _FEW:
            reasons.append(f"few tokens ({self.tokens})")
        if self.contextual:
            share = self.words.label_share
            reasons.append(f"context: {share:.0%} of its words' occurrences, told apart with AUC {self.auc_hard:.2f}")
        if not self.encoded and best.recall < _RARELY:
            over = f"spread over {words} tokens" if words > 1 else "one token"
            reasons.append(f"{over}: the best feature finds {best.recall:.0%}")
        return "; ".join(reasons) or f"the best feature finds {best.recall:.0%}, and is right in {best.precision:.0%}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the figures of `best`, `words` and `context` beside those of the concept, and `by_auc`."""
        own = {"concept": self.concept, "tokens": self.tokens, "base_rate": self.base_rate}
        flat = asdict(self.best) | asdict(self.words) | asdict(self.context)
        return own | flat | {"by_auc": asdict(self.by_auc)} | {name: getattr(self, name) for name in _DERIVED}
