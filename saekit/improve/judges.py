"""Judges of continuations, learned from the texts that a recipe is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saekit.tasks import Contrast

Judge = Callable[[str], float]


def judge_of(contrast: Contrast) -> Judge:
    """1.0 for a text that a classifier of words takes for a positive text of the contrast, else 0.0; 0.0 for an empty one.

    The classifier is a logistic regression on TF-IDF weights of words and of pairs of words. It never sees the model.
    """
    return _classifier(contrast.positive, contrast.negative)


def accuracy(judge: Judge, contrast: Contrast) -> float:
    """The share of the texts of a contrast, which the judge has not seen, that it judges rightly."""
    right = [judge(text) for text in contrast.positive] + [1 - judge(text) for text in contrast.negative]
    return sum(right) / len(right)


def _classifier(positive: Sequence[str], negative: Sequence[str]) -> Judge:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    model = make_pipeline(words, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000))
    model.fit([*positive, *negative], [1] * len(positive) + [0] * len(negative))

    def judge(text: str) -> float:
        return float(model.predict([text])[0]) if text.strip() else 0.0

    return judge
