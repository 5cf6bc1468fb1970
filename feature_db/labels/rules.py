"""Labels that cost nothing: what a feature fires on, before, amid and promotes, said in a few words and scored on the pass.

A labeller is any function from :class:`Evidence` to labels; :data:`AUTOMATIC` lists those that run at build time. Others (token
changes measured with the model, language models) can be run later and stored with :meth:`FeatureDB.add_labels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from feature_db.index.terms import TermStat
from feature_db.index.words import CLASSES

HUMAN = "human"
HUMAN_RANK = 100.0
"""A human label is shown before any other. Automatic ones have ranks up to 1; what lies between is for models."""
# Which kind of feature the label that is shown makes it.
KINDS = {
    "words": "word",
    "pieces": "piece",
    "peaks": "word",
    "class": "class",
    "before": "context",
    "context": "context",
    "promotes": "output",
}
ALL_KINDS = (*dict.fromkeys(KINDS.values()), "dense", "dead")
DENSE = 0.1


@dataclass(frozen=True)
class Label:
    """One description of a feature."""

    method: str
    """How it was found: `human`, `words`, `pieces`, `peaks`, `class`, `before`, `context`, `promotes`, ..."""
    text: str
    rank: float = 0.0
    """The label with the highest is shown."""
    keywords: str = ""
    """What a search sees of it. A template's fixed words would match every feature, so they are not in here."""
    scores: dict[str, float] = field(default_factory=dict)
    model: str | None = None
    prompt: str | None = None
    """Hash of the prompt, for labels that a model wrote."""


@dataclass
class Evidence:
    """What is known about one feature."""

    stats: dict[str, list[TermStat]]
    """Rows of `token_stat` by role."""
    text: Callable[[str, int], str]
    """Text of a row's item: (role, item)."""
    occurrences: Callable[[str, int], int]
    count: int
    """Tokens it fires on."""
    class_share: NDArray[np.float64]
    """Share of those that are of each class of :data:`CLASSES`."""
    class_recall: NDArray[np.float64]
    """Share of each class's tokens on which it fires."""
    class_base: NDArray[np.float64]
    """Share of all tokens that are of each class."""


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
    """The words on which most of its activation lies, beyond what chance would put there."""
    return _fired(evidence, "fires_word", "words", "fires on", 0.0)


def pieces(evidence: Evidence) -> Iterable[Label]:
    """The tokens; shown where one says more than any whole word does: an ending that many words share."""
    shared = _first(evidence, "fires_token") > _first(evidence, "fires_word") + 0.1
    return _fired(evidence, "fires_token", "pieces", "fires on the piece", 0.15 if shared else 0.5)


def peaks(evidence: Evidence) -> Iterable[Label]:
    """The words at its strongest peaks, where they are the same in most examples though most of its activation is elsewhere."""
    rows = [row for row in evidence.stats.get("peaks", []) if row.value >= 0.15][:3]
    if rows:
        share = sum(row.value for row in rows)
        texts = [evidence.text("peaks", row.item) for row in rows]
        yield Label("peaks", f"peaks on {quoted(texts)}", 0.6 * min(share, 1.0), "", {"example_share": share})


def before(evidence: Evidence) -> Iterable[Label]:
    """The words that follow where it fires."""
    return _fired(evidence, "before", "before", "fires before", 0.3)


def token_class(evidence: Evidence) -> Iterable[Label]:
    """Casing, digits, punctuation, place: the class that holds nearly all it fires on, and little else of the text."""
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
    """Words that most of its strongest examples have around the peak."""
    rows = [row for row in evidence.stats.get("context", []) if row.score >= 0.25]
    texts = [text for row in rows if (text := evidence.text("context", row.item))[0].isalnum()][:3]
    if texts:
        yield Label("context", f"in text with {quoted(texts)}", 0.4 * rows[0].score, "", {"example_share": rows[0].value})


def promotes(evidence: Evidence) -> Iterable[Label]:
    """The tokens that its decoder direction makes most likely."""
    rows = evidence.stats.get("promotes", [])[:4]
    if rows:
        texts = [evidence.text("promotes", row.item) for row in rows]
        yield Label("promotes", f"promotes {quoted(texts)}", 0.2 * rows[0].score, "", {"strength": rows[0].score})


AUTOMATIC: tuple[Callable[[Evidence], Iterable[Label]], ...] = (words, pieces, peaks, token_class, before, context, promotes)
AUTOMATIC_METHODS = tuple(KINDS)
"""Methods whose labels a rebuild makes anew."""


def automatic(evidence: Evidence) -> list[Label]:
    """All free labels of a feature, the one to show first."""
    found = [label for labeller in AUTOMATIC for label in labeller(evidence)]
    return sorted(found, key=lambda label: -label.rank)


def kind(labels: list[Label], count: int, density: float) -> str:
    """What kind of feature it is: dead, dense, word, piece, class, context or output."""
    if count == 0:
        return "dead"
    if density > DENSE and (not labels or labels[0].rank < 0.5):
        return "dense"
    return KINDS.get(labels[0].method, "word") if labels else "output"


def quoted(texts: Iterable[str]) -> str:
    """'a', 'b': in quotation marks, with line breaks shown as \\n."""
    return ", ".join(f"'{text}'".replace("\n", "\\n") for text in texts)
