"""Labels made by rules: short phrases for the words that a feature fires on, fires before, has around its peaks or promotes.

A label method is a function from :class:`Evidence` to labels, and a row of :data:`LABEL_METHODS`. Each label carries its rule
(:class:`~feature_db.labels.evidence.Rule`), so that it can be run on held-out documents as a classifier. Labels of other origin
(people, language models) are stored with :meth:`feature_db.FeatureDB.add_labels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_db.labels.evidence import Evidence, Label, Rule, TermStat
from feature_db.labels.token_classes import CLASSES
from feature_db.labels.word_classes import WORD_CLASSES
from saekit.plugins import Registry

HUMAN = "human"
HUMAN_RANK = 100.0
UNSCORED_RANK = 10.0
"""Of a label by a model that was not scored: it is shown before those by rules, and after those by people."""
"""A human label is shown before any other. Labels by rules have ranks up to 1; ranks between are for models."""
DENSE = 0.1
"""Density from which a feature without a clear label is called dense."""


@dataclass(frozen=True)
class LabelMethod:
    """A row of :data:`LABEL_METHODS`."""

    label: Callable[[Evidence], Iterable[Label]]
    """Returns labels of one feature that fires. Their `method` is replaced by the name of the row."""
    kind: str
    """Kind of a feature whose label of the highest rank is by this method when it is indexed: word, piece, class, context, ..."""
    measured: tuple[str, ...] = ()
    """The roles in :attr:`Evidence.stats` that the method reads, if `causes` is one of them: its labels are made anew, from these
    roles alone, when that was measured."""


_TESTS = {"fires_word": "word", "fires_token": "token", "before": "next_word"}


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
    scores = {"activation_share": share, "train_precision": precision, "train_recall": recall, "train_f1": f1}
    # One term with half of the activation says more than four with an eighth each.
    rank = (chosen[0].value + share) / 2 - penalty
    rule = Rule(_TESTS[role], tuple(row.item for row in chosen) if role == "fires_token" else tuple(texts))
    yield Label(method, f"{lead} {quoted(texts)}", max(rank, 0.01), "", scores, rule=rule)


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
        rule = Rule("word", tuple(texts))
        yield Label("peaks", f"peaks on {quoted(texts)}", 0.6 * min(share, 1.0), "", {"example_share": share}, rule=rule)


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
            "train_precision": float(evidence.class_share[best]),
            "train_recall": float(evidence.class_recall[best]),
            "lift": float(lift[best]),
        }
        rule = Rule("class", (list(CLASSES)[best],))
        yield Label("class", f"fires on {phrase}", 0.45 * float(lift[best]), phrase, scores, rule=rule)


def word_class(evidence: Evidence) -> Iterable[Label]:
    """The class of words (pronouns, the past tense, ...) that holds most of the activation, and few of the other words."""
    inside: dict[str, list[TermStat]] = {}
    for row in evidence.stats.get("fires_word", []):
        for name in evidence.word_classes(row.item):
            inside.setdefault(name, []).append(row)
    best: Label | None = None
    for name, rows in inside.items():
        share, occurrences = sum(row.value for row in rows), evidence.class_occurrences(name)
        if len(rows) < 3 or share < 0.5 or not occurrences:  # one or two words are named as such
            continue
        hits = sum((row.rate or 0) * evidence.occurrences("fires_word", row.item) for row in rows)
        recall = min(hits / occurrences, 1.0)
        f1 = 2 * share * recall / (share + recall)
        if recall >= 0.2 and (best is None or f1 > best.scores["train_f1"]):
            phrase, rule = WORD_CLASSES[name].phrase, Rule("word_class", (name,))
            scores = {"activation_share": share, "train_recall": recall, "train_f1": f1}
            best = Label("word_class", f"fires on {phrase}", 0.6 * f1, phrase, scores, rule=rule)
    if best is not None:
        yield best


def context(evidence: Evidence) -> Iterable[Label]:
    """Words around the peak in most of the strongest examples."""
    rows = [row for row in evidence.stats.get("context", []) if row.score >= 0.25]
    texts = [text for row in rows if (text := evidence.text("context", row.item))[0].isalnum()][:3]
    if texts:
        scores, rule = {"example_share": rows[0].value}, Rule("near", tuple(texts), *evidence.window)
        yield Label("context", f"in text with {quoted(texts)}", 0.4 * rows[0].score, "", scores, rule=rule)


def contrast(evidence: Evidence) -> Iterable[Label]:
    """The words that tell the text around its peaks from the corpus, by class TF-IDF.

    The weight of a word is its share of the strongest examples times log(1 + tokens of the corpus per occurrence), as in BERTopic
    (Grootendorst 2022, arXiv 2203.05794, equation 2), so that rare words count more than in `context`.
    """
    weighed = []
    for row in evidence.stats.get("context", []):
        if row.value >= 0.15 and evidence.text("context", row.item)[0].isalnum():
            rarity = math.log1p(evidence.n_tokens / max(evidence.occurrences("context", row.item), 1))
            weighed.append((row.value * rarity, row))
    chosen = [row for _, row in sorted(weighed, key=lambda pair: -pair[0])[:4]]
    if len(chosen) >= 2:
        texts, share = [evidence.text("context", row.item) for row in chosen], max(row.value for row in chosen)
        rule = Rule("near", tuple(texts), *evidence.window)
        yield Label("contrast", f"in text about {quoted(texts)}", 0.3 * share, "", {"example_share": share}, rule=rule)


def says(evidence: Evidence) -> Iterable[Label]:
    """The words that follow and whose tokens the feature also promotes, or raises when it is clamped (`causes`)."""
    raised = {
        evidence.text(role, row.item).strip().casefold(): row.score
        for role in ("promotes", "causes")
        for row in evidence.stats.get(role, [])[:20]
    }
    rows = [row for row in evidence.stats.get("before", []) if evidence.text("before", row.item) in raised][:4]
    share = sum(row.value for row in rows)
    if share >= 0.1:
        texts = [evidence.text("before", row.item) for row in rows]
        rule = Rule("next_word", tuple(texts))
        yield Label("says", f"says {quoted(texts)}", 0.9 * share, "", {"activation_share": share}, rule=rule)


def causes(evidence: Evidence) -> Iterable[Label]:
    """The tokens that gain most when the feature is clamped on neutral prompts, once that was measured."""
    rows = [row for row in evidence.stats.get("causes", []) if row.score > 0][:4]
    if rows:
        texts, rule = [evidence.text("causes", row.item) for row in rows], Rule("next_token", tuple(row.item for row in rows))
        scores = {"change": rows[0].value}
        yield Label("causes", f"makes the model say {quoted(texts)}", 0.2 * rows[0].score, "", scores, rule=rule)


def promotes(evidence: Evidence) -> Iterable[Label]:
    """The tokens that the decoder direction promotes most."""
    rows = evidence.stats.get("promotes", [])[:4]
    if rows:
        texts, rule = [evidence.text("promotes", row.item) for row in rows], Rule("next_token", tuple(row.item for row in rows))
        scores = {"strength": rows[0].score}
        yield Label("promotes", f"promotes {quoted(texts)}", 0.2 * rows[0].score, "", scores, rule=rule)


LABEL_METHODS: Registry[LabelMethod] = Registry(
    "label method",
    {
        "words": LabelMethod(words, "word"),
        "pieces": LabelMethod(pieces, "piece"),
        "peaks": LabelMethod(peaks, "word"),
        "class": LabelMethod(token_class, "class"),
        "word_class": LabelMethod(word_class, "class"),
        "before": LabelMethod(before, "context"),
        "says": LabelMethod(says, "output", ("before", "promotes", "causes")),
        "context": LabelMethod(context, "context"),
        "contrast": LabelMethod(contrast, "context"),
        "promotes": LabelMethod(promotes, "output"),
        "causes": LabelMethod(causes, "output", ("causes",)),
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
    return labelled(evidence, chosen(methods))


def chosen(methods: Sequence[str] | None = None) -> dict[str, LabelMethod]:
    """Label methods by name; None: all. Looking them up for each feature would take long."""
    return {name: LABEL_METHODS[name] for name in (LABEL_METHODS if methods is None else methods)}


def labelled(evidence: Evidence, methods: Mapping[str, LabelMethod]) -> list[Label]:
    """Labels of a feature by some methods, the one to show first."""
    found = [
        Label(name, x.text, x.rank, x.keywords, x.scores, x.model, x.prompt, x.rule)
        for name, method in methods.items()
        for x in method.label(evidence)
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
