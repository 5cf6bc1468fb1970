"""The scorers of labels that `saekit score` offers.

A scorer is one file with a function, and one row of :data:`SCORERS`::

    # my_scorer.py, used with SAEKIT_PLUGINS=my_scorer.py saekit score WORKSPACE --scorer mine
    from feature_db.scorers import SCORERS, Result, Score, Scorer

    def measure(subject, labels):
        for label in labels:
            examples = subject.examples(label.feature, 10)
            if not examples.active:
                yield Result(label, failed="too few held-out texts")
                continue
            right = [my_judge(label.text, example) for example in examples.active + examples.random]
            yield Result(label, {"mine": Score(sum(right) / len(right), len(right))})

    SCORERS.register("mine", Scorer(measure, "mine", "What it measures."))

The function gets a :class:`~feature_db.scorers.subject.Subject`, which gives held-out texts, activations on them, and the model;
and the labels (:class:`~feature_db.scorers.given.Given`) in ascending order of their features. It yields one :class:`Result` a
label, in any order, as soon as it is known. Results are written every few seconds, and a command that runs again goes on with the
labels that have no score under the row's `metric`. A label that cannot be scored gets a result with the reason in `failed`; it
counts as not scored. What the user sets for a scorer (a judge, a seed, a number of texts) is in `subject.options`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from saekit.plugins import Registry, resolve

if TYPE_CHECKING:
    from feature_db.scorers.given import Given
    from feature_db.scorers.proportions import Score
    from feature_db.scorers.subject import Subject


@dataclass(frozen=True)
class Result:
    """What a scorer found out about one label."""

    label: Given
    scores: dict[str, Score] = field(default_factory=dict)
    """By metric."""
    failed: str = ""
    """Why the label has no score."""


Measure = Callable[["Subject", Sequence["Given"]], Iterator[Result]]


@dataclass(frozen=True)
class Scorer:
    """A row of :data:`SCORERS`."""

    measure: Measure | str
    """The function, or "module:name", which is imported when it is used."""
    metric: str
    """The metric that every label has after it was scored."""
    about: str
    """One line for `--help`."""
    decides: bool = False
    """Whether the metric is a balanced accuracy (chance is .5), which decides which label of a feature is shown."""
    default: bool = False
    """Whether the scorer runs when none is named."""
    rules_only: bool = False
    """Whether only labels with a rule can be scored."""
    judged: bool = False
    """Whether a language model is asked (the option `judge`, a :class:`feature_db.chat.model.ChatModel`)."""
    prompt: str = ""
    """Name of the packaged prompt with which it is asked. Scores by another model or prompt count as not known."""
    of_feature: bool = False
    """Whether the score is one of the feature, the same for all its labels."""

    def __call__(self, subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
        """Score labels."""
        found: Iterator[Result] = resolve(self.measure)(subject, labels)
        return found

    def takes(self, label: Given, methods: Collection[str] | None) -> bool:
        """Whether a label is scored.

        Args:
            methods: only labels by these methods; None: all, but language models judge only the labels of people and models,
                since rules are run at no cost.
        """
        from feature_db.labels.rules import LABEL_METHODS

        if self.rules_only and label.rule is None:
            return False
        if methods is not None:
            return label.method in methods
        return not self.judged or self.of_feature or label.method not in LABEL_METHODS


def _judged(name: str, about: str, *, decides: bool = False, of_feature: bool = False) -> Scorer:
    """The row of a scorer that asks a language model; its metric has its name."""
    target = f"feature_db.scorers.judges.{name}:measure"
    return Scorer(target, name, about, decides=decides, judged=True, prompt=name, of_feature=of_feature)


SCORERS: Registry[Scorer] = Registry(
    "scorer",
    {
        "rule": Scorer(
            "feature_db.scorers.rule:measure",
            "balanced_accuracy",
            "Run the rule of a label as a classifier of tokens.",
            decides=True,
            default=True,
            rules_only=True,
        ),
        "embedding": Scorer(
            "feature_db.scorers.embedding:measure",
            "embedding_auroc",
            "Compare the meaning of the label with that of texts on which the feature fires, and of others.",
            default=True,
        ),
        "surprisal": Scorer(
            "feature_db.scorers.surprisal:measure",
            "surprisal_auroc",
            "Ask the studied model: does the label make texts on which the feature fires less surprising than others?",
        ),
        "detection": _judged("detection", "Ask a judge which texts the label fits.", decides=True),
        "fuzzing": _judged("fuzzing", "Ask a judge in which texts the right tokens are marked."),
        "simulation": _judged("simulation", "Let a judge predict the activation of each token from the label."),
        "intruder": _judged(
            "intruder", "Ask a judge which text does not belong to the others. No label is used.", of_feature=True
        ),
        **{
            f"{name}_{by}": Scorer(f"feature_db.scorers.relevance:{name}_{by}", f"{name}_{by}", f"What {name} asks, by {by}.")
            for name in ("fuzzing", "simulation", "intruder")
            for by in ("embedding", "surprisal")
        },
    },
)
"""Scorers by the names that `saekit score --scorer` takes."""


def deciding() -> list[str]:
    """The metrics that decide which label is shown, the first one that a label has before others."""
    return [row.metric for row in SCORERS.values() if row.decides]
