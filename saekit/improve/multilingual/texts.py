"""Texts by language, contrasts of languages, and a judge of languages."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from saekit.errors import ConfigError
from saekit.tasks import Contrast, Labelled


def by_label(data: Labelled) -> dict[str, list[str]]:
    """The texts of each label, the labels in the order of their first text.

    Raises:
        ConfigError: spans are labelled, or there is only one label.
    """
    if data.labels is None:
        raise ConfigError("Whole texts need a label each, and spans are labelled.", 'Write {"text": ..., "label": "french"}.')
    found: dict[str, list[str]] = {}
    for text, label in zip(data.texts, data.labels):
        found.setdefault(label, []).append(text)
    if len(found) < 2:
        raise ConfigError(f"All texts have the label {next(iter(found))!r}.", "Give texts of at least two languages.")
    return found


def contrast(texts: dict[str, list[str]], language: str, seed: int) -> Contrast:
    """Texts of a language against as many texts of the first one."""
    first = next(iter(texts))
    n = min(len(texts[language]), len(texts[first]))
    draw = Random(f"contrast/{seed}")
    pairs = zip(draw.sample(texts[language], n), draw.sample(texts[first], n))
    return Contrast.of(language, pairs)


def judge_of(texts: dict[str, list[str]]) -> Callable[[str], str]:
    """The language of a text, by a classifier of its words and letters; "" for an empty text."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), sublinear_tf=True)
    model = make_pipeline(letters, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000))
    model.fit([text for each in texts.values() for text in each], [name for name, each in texts.items() for _ in each])
    return lambda text: str(model.predict([text])[0]) if text.strip() else ""
