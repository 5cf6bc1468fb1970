"""Labels made by rules: short phrases for the words that a feature fires on, fires before, has around its peaks or promotes.

A label method is a function from :class:`Evidence` to labels, and a row of :data:`LABEL_METHODS`. Labels of other origin (people,
language models) are stored with :meth:`feature_db.FeatureDB.add_labels`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from feature_db.labels.evidence import Evidence, Label
from feature_db.labels.token_classes import CLASSES
from saekit.plugins import Registry

HUMAN = "human"
HUMAN_RANK = 100.0
"""A human label is shown before any other. Labels by rules have ranks up to 1; ranks between are for models."""
DENSE = 0.1
"""Density from which a feature without a clear label is called dense."""


@dataclass(frozen=True)
class LabelMethod:
    """A row of :data:`LABEL_METHODS`."""

    label: Callable[[Evidence], Iterable[Label]]
    """Returns labels of one feature that fires. Their `method` is replaced by the name of the row."""
    kind: str
    """Kind of a feature whose shown label is by this method: word, piece, class, context, output, ..."""


def _fired(evidence: Evidence, role: str, method: str, lead: str, penalty: float) -> Iterable[Label]:
    rows = [row for row in evidence.stats.get(role, []) if row.score > 0]
    if not rows:
        return
    chosen = [rows[0], *(row for row in rows[1:4] if row.value >= 0.04 and row.score >= 0.15 * rows[0].score)]
    occurrences = [evidence.occurrences(role, row.item) for row in chosen]
    share = sum(row.value for row in chosen)
    precision = sum(row.hits or 0 for row in chosen) / max(evidence.count, 1)
    recall = sum((row.rate or 0) * n for row, n in zip(chosen, occurrences)) / max(sum(occurrences), 1)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    texts = [evidence.text(role, row.item) for row in chosen]
    scores = {"activation_share": share, "precision": precision, "recall": recall, "f1": f1}
    # One term with half of the activation says more than four with an eighth each.
    rank = (chosen[0].value + share) / 2 - penalty
    yield Label(method, f"{lead} {quoted(texts)}", max(rank, 0.01), "", scores)


def _first(evidence: Evidence, role: str) -> float:
    rows = evidence.stats.get(role, [])
    return rows[0].value if rows else 0.0


def words(evidence: Evidence) -> Iterable[Label]:
    """The words that hold most of the activation, beyond chance."""
    return _fired(evidence, "fires_word", "words", "fires on", 0.0)


def pieces(evidence: Evidence) -> Iterable[Label]:
    """The tokens. They rank above words if one token holds more activation than any word: an ending that many words share."""
    shared = _first(evidence, "fires_token") > _first(evidence, "fires_word") + 0.1
    return _fired(evidence, "fires_token", "pieces", "fires on the piece", 0.15 if shared else 0.5)


def peaks(evidence: Evidence) -> Iterable[Label]:
    """The words at the strongest peaks, if most examples share them."""
    rows = [row for row in evidence.stats.get("peaks", []) if row.value >= 0.15][:3]
    if rows:
        share = sum(row.value for row in rows)
        texts = [evidence.text("peaks", row.item) for row in rows]
        yield Label("peaks", f"peaks on {quoted(texts)}", 0.6 * min(share, 1.0), "", {"example_share": share})


def before(evidence: Evidence) -> Iterable[Label]:
    """The words that follow the tokens on which the feature fires."""
    return _fired(evidence, "before", "before", "fires before", 0.3)


def token_class(evidence: Evidence) -> Iterable[Label]:
    """The class of tokens (case, digits, punctuation, place) that holds nearly all firing tokens, and few of the other tokens."""
    lift = (evidence.class_share - evidence.class_base) / np.maximum(1 - evidence.class_base, 1e-12)
    best = int(np.argmax(lift))
    if lift[best] >= 0.7:
        phrase = list(CLASSES.values())[best]
        scores = {
            "precision": float(evidence.class_share[best]),
            "recall": float(evidence.class_recall[best]),
            "lift": float(lift[best]),
        }
        yield Label("class", f"fires on {phrase}", 0.45 * float(lift[best]), phrase, scores)


def context(evidence: Evidence) -> Iterable[Label]:
    """Words around the peak in most of the strongest examples."""
    rows = [row for row in evidence.stats.get("context", []) if row.score >= 0.25]
    texts = [text for row in rows if (text := evidence.text("context", row.item))[0].isalnum()][:3]
    if texts:
        yield Label("context", f"in text with {quoted(texts)}", 0.4 * rows[0].score, "", {"example_share": rows[0].value})


def promotes(evidence: Evidence) -> Iterable[Label]:
    """The tokens that the decoder direction promotes most."""
    rows = evidence.stats.get("promotes", [])[:4]
    if rows:
        texts = [evidence.text("promotes", row.item) for row in rows]
        yield Label("promotes", f"promotes {quoted(texts)}", 0.2 * rows[0].score, "", {"strength": rows[0].score})


LABEL_METHODS: Registry[LabelMethod] = Registry(
    "label method",
    {
        "words": LabelMethod(words, "word"),
        "pieces": LabelMethod(pieces, "piece"),
        "peaks": LabelMethod(peaks, "word"),
        "class": LabelMethod(token_class, "class"),
        "before": LabelMethod(before, "context"),
        "context": LabelMethod(context, "context"),
        "promotes": LabelMethod(promotes, "output"),
    },
)
"""Methods that run when features are indexed, by name. A rebuild replaces their labels."""


def kinds() -> list[str]:
    """All kinds of features there are."""
    return [*dict.fromkeys(method.kind for method in LABEL_METHODS.values()), "dense", "dead"]


def automatic(evidence: Evidence, methods: Sequence[str] | None = None) -> list[Label]:
    """Labels of a feature by rules, the one to show first.

    Args:
        evidence: of the feature.
        methods: names of label methods; None: all.
    """
    found = [
        dataclasses.replace(label, method=name)
        for name in (LABEL_METHODS if methods is None else methods)
        for label in LABEL_METHODS[name].label(evidence)
    ]
    return sorted(found, key=lambda label: -label.rank)


def kind(labels: list[Label], count: int, density: float) -> str:
    """The kind of a feature: dead, dense, word, piece, class, context or output."""
    if count == 0:
        return "dead"
    if density > DENSE and (not labels or labels[0].rank < 0.5):
        return "dense"
    return LABEL_METHODS[labels[0].method].kind if labels else "output"


def quoted(texts: Iterable[str]) -> str:
    """The texts in quotation marks, separated by commas, with line breaks written as \\n."""
    return ", ".join(f"'{text}'".replace("\n", "\\n") for text in texts)
