"""Runs rule labels as classifiers of the tokens of held-out documents.

The unit is the token: features fire on tokens, and most rules are about tokens. All ordinary tokens of the held-out documents are
classified, so recall, precision and F1 are those of the text as it is. Balanced accuracy is the mean of recall and specificity,
and does not depend on how often a feature fires. It is given three times: against all tokens on which the feature is silent,
against hard ones (on which a feature fires that fires together with it, or has a similar decoder direction), and for other
features in place of the label's own, which shows what a rule reaches by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from feature_db.labels.predicates import PREDICATES
from feature_db.scorers.given import Given
from feature_db.scorers.proportions import Score, f1, mean_of, proportion
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import LEAST_TOKENS, Subject

SHUFFLED = 4
"""Other features that each rule is tried on."""
_LEAST_HARD = 200


def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """Score the rules of labels; see :data:`feature_db.scorers.registry.SCORERS`."""
    rows_of = _Rows(subject)
    for feature, group in groupby(labels, key=lambda label: label.feature):
        if reason := subject.too_few(feature):
            yield from (Result(label, failed=reason) for label in group)
            continue
        rng = np.random.default_rng([subject.seed, feature])
        silent = _Silent(subject, feature, rng)
        wrong = _others(subject, feature, rng)
        for label in group:
            if label.rule is None:
                yield Result(label, failed="the label has no rule")
                continue
            predicted = PREDICATES.find(label.rule.test)(subject.heldout.text, label.rule)
            scores = rows_of.compare(feature, predicted)
            scores |= silent.compare(predicted, scores["recall"])
            chance = [rows_of.accuracy(other, predicted) for other in wrong]
            if chance:
                tokens = len(subject.heldout.text.counted_rows)
                scores["balanced_accuracy_shuffled"] = Score(float(np.mean(chance)), tokens)
            yield Result(label, scores)


def _others(subject: Subject, feature: int, rng: np.random.Generator) -> list[int]:
    """Some other features at random, of those that fire often enough."""
    often = np.flatnonzero(np.diff(subject.heldout.codes.start_F) >= LEAST_TOKENS)
    tried = rng.choice(often, 4 * SHUFFLED).tolist() if len(often) else []
    return [f for f in dict.fromkeys(tried) if f != feature and not subject.too_few(f)][:SHUFFLED]


class _Rows:
    """Compares the tokens that a rule predicts with those on which a feature fires."""

    def __init__(self, subject: Subject) -> None:
        self._heldout = subject.heldout
        self._fires_N = np.zeros(len(subject.heldout.text.tokens_N), bool)

    def compare(self, feature: int, predicted: NDArray[np.int64]) -> dict[str, Score]:
        heldout, fires_N = self._heldout, self._fires_N
        rows = heldout.codes.rows(feature)
        fires_N[rows] = True
        both_D = heldout.per_document(predicted[fires_N[predicted]])
        fires_N[rows] = False
        fired_D, predicted_D = heldout.per_document(rows), heldout.per_document(predicted)
        neither_D = heldout.counts_D - fired_D - predicted_D + both_D
        recall, specificity = proportion(both_D, fired_D), proportion(neither_D, heldout.counts_D - fired_D)
        precision, joint = proportion(both_D, predicted_D), f1(both_D, fired_D + predicted_D - both_D)
        assert recall is not None and joint is not None  # the feature fires
        found = {"recall": recall, "f1": joint}
        if precision is not None:
            found["precision"] = precision
        # Where a feature fires on every token, no token is left to be wrong about.
        found["balanced_accuracy"] = mean_of(recall, specificity or Score(1.0, 0, 0.0, 1.0))
        return found

    def accuracy(self, feature: int, predicted: NDArray[np.int64]) -> float:
        """Balanced accuracy alone."""
        rows, counted = self._heldout.codes.rows(feature), len(self._heldout.text.counted_rows)
        self._fires_N[rows] = True
        both = int(np.count_nonzero(self._fires_N[predicted]))
        self._fires_N[rows] = False
        silent = counted - len(rows)
        specificity = (silent - len(predicted) + both) / silent if silent else 1.0
        return (both / len(rows) + specificity) / 2


class _Silent:
    """Tokens on which a feature is silent and a neighbour fires, at most as many of each neighbour as the feature fires on."""

    def __init__(self, subject: Subject, feature: int, rng: np.random.Generator) -> None:
        self._heldout = heldout = subject.heldout
        codes = heldout.codes
        rows = codes.rows(feature)
        most = max(len(rows), _LEAST_HARD)
        parts = [np.zeros(0, np.int32)]
        for other in subject.neighbours(feature).tolist():
            silent = np.setdiff1d(codes.rows(other), rows, assume_unique=True)
            parts.append(silent if len(silent) <= most else rng.choice(silent, most, replace=False))
        self._rows = np.unique(np.concatenate(parts))
        self._hard_N = np.zeros(len(heldout.text.tokens_N), bool)
        self._hard_N[self._rows] = True
        self._hard_D = heldout.per_document(self._rows)

    def compare(self, predicted: NDArray[np.int64], recall: Score) -> dict[str, Score]:
        wrong_D = self._heldout.per_document(predicted[self._hard_N[predicted]])
        specificity = proportion(self._hard_D - wrong_D, self._hard_D)
        return {} if specificity is None else {"balanced_accuracy_hard": mean_of(recall, specificity)}
