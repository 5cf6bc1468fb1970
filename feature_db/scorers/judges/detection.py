"""Detection: the judge gets a label and five texts, and says which of them the label fits (Paulo et al. 2024, arXiv 2410.13928).

Texts are held out. As many as those on which the feature fires are ones on which it does not, half of them random and half hard.
The score is the balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from feature_db.autolabel.shown import one_line, quoted
from feature_db.chat.model import NoAnswer
from feature_db.scorers.given import Given
from feature_db.scorers.judges.judging import TEXTS, Judge, each_answer, judged, numbered, read_numbers
from feature_db.scorers.proportions import Score, mean_of, proportion
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject

GROUP = 5
"""Texts in a question."""


class Trial(NamedTuple):
    """A text, whether the judge should choose it, and which kind of text it is."""

    text: str
    right: bool
    kind: str


def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """Score labels; see :data:`feature_db.scorers.registry.SCORERS`. The options are `judge`, `texts` and `max_tokens`."""
    return judged(subject, labels, "detection", _scores)


async def _scores(subject: Subject, judge: Judge, label: Given) -> Mapping[str, Score]:
    n = int(subject.options.get("texts", TEXTS["detection"]))
    found = subject.examples(label.feature, n)
    hard = found.hard[: len(found.active) // 2]
    random = found.random[: len(found.active) - len(hard)]
    trials = [
        Trial(one_line(subject.text(example)), kind == "active", kind)
        for kind, examples in (("active", found.active), ("random", random), ("hard", hard))
        for example in examples
    ]
    return await choices(subject, judge, label, trials)


async def choices(subject: Subject, judge: Judge, label: Given, trials: Sequence[Trial]) -> Mapping[str, Score]:
    """Balanced accuracy with which the judge chooses the right ones of texts in groups of five, in random order.

    Returns:
        Scores by metric: the name of the prompt, and `..._hard` where only the hard ones of the wrong texts count.

    Raises:
        NoAnswer: there are no texts of both kinds with an answer.
    """
    name = judge.name
    order = np.random.default_rng([subject.seed, label.feature, len(trials)]).permutation(len(trials)).tolist()
    groups = [[trials[i] for i in order[start : start + GROUP]] for start in range(0, len(order), GROUP)]

    async def answer(group: list[Trial]) -> set[int]:
        texts = numbered([trial.text for trial in group])
        return await judge(lambda text: read_numbers(text, len(group)), label=quoted(subject.said(label)), texts=texts)

    outcomes: dict[str, list[bool]] = {}
    for group, chosen in await each_answer(groups, answer):
        for i, trial in enumerate(group, start=1):
            outcomes.setdefault(trial.kind, []).append((i in chosen) == trial.right)
    right = _share([hit for kind, hits in outcomes.items() if kind == "active" for hit in hits])
    wrong = _share([hit for kind, hits in outcomes.items() if kind != "active" for hit in hits])
    if right is None or wrong is None:
        raise NoAnswer("the texts with an answer are all of one kind")
    hard = _share(outcomes.get("hard", []))
    scores = {name: mean_of(right, wrong), f"{name}_recall": right}
    return scores if hard is None else scores | {f"{name}_hard": mean_of(right, hard)}


def _share(hits: Sequence[bool]) -> Score | None:
    """The share of hits; each text is of a document of its own."""
    return proportion(np.array(hits, np.int64), np.ones(len(hits), np.int64)) if hits else None
