"""Intruder: the judge sees five texts with marks and says which of them does not belong (Paulo et al. 2025, arXiv 2507.08473).

No label is needed: the score says whether the texts on which a feature fires have something in common. In four of the texts the
tokens are marked on which the feature fires. In the fifth, it does not fire, and as many tokens are marked. Texts are held out.
The score is the share of right answers; chance is .2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from feature_db.autolabel.shown import marked, marks
from feature_db.chat.model import NoAnswer
from feature_db.scorers.examples import HeldoutExample
from feature_db.scorers.given import Given
from feature_db.scorers.judges.judging import TEXTS, Judge, each_answer, judged, numbered, read_number
from feature_db.scorers.proportions import Score, proportion
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject

OTHERS = 4
"""Texts in a question that belong together."""

Question = tuple[list[HeldoutExample], HeldoutExample, int]
"""Texts that belong together, the intruder, and its place among them, from 0."""


def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """Score the features of labels, each feature once; see :data:`feature_db.scorers.registry.SCORERS`.

    The options are `judge`, `texts` and `max_tokens`.
    """
    of_feature = {feature: list(group) for feature, group in groupby(labels, key=lambda label: label.feature)}
    for result in judged(subject, (group[0] for group in of_feature.values()), "intruder", _scores):
        yield from (Result(label, result.scores, result.failed) for label in of_feature[result.label.feature])


async def _scores(subject: Subject, judge: Judge, label: Given) -> Mapping[str, Score]:
    asked = questions(subject, label.feature, int(subject.options.get("texts", TEXTS["intruder"])))

    async def answer(question: Question) -> int:
        texts = numbered(shown(subject, question, label.feature))
        return await judge(lambda text: read_number(text, OTHERS + 1), texts=texts)

    found = await each_answer(asked, answer)
    return accuracy("intruder", [number - 1 == place for (_, _, place), number in found])


def questions(subject: Subject, feature: int, n: int) -> list[Question]:
    """Questions about a feature, each with texts of its own; intruders are in turn random and hard ones.

    Raises:
        NoAnswer: there are too few held-out texts for one.
    """
    rng = np.random.default_rng([subject.seed, feature])
    found = subject.examples(feature, n)
    active = [found.active[i] for i in rng.permutation(len(found.active)).tolist()]
    wrong = [each for pair in zip(found.random, found.hard) for each in pair]
    wrong += found.random[len(wrong) // 2 :]
    groups = [active[start : start + OTHERS] for start in range(0, len(active) - OTHERS + 1, OTHERS)]
    asked = [(group, intruder, int(rng.integers(OTHERS + 1))) for group, intruder in zip(groups, wrong)]
    if not asked:
        raise NoAnswer(f"the feature fires in fewer than {OTHERS} held-out texts, or in all")
    return asked


def shown(subject: Subject, question: Question, feature: int) -> list[str]:
    """The texts of a question with their marks, in order."""
    group, intruder, place = question
    which = [marks(example.values.tolist()) for example in group]
    rng = np.random.default_rng([subject.seed, feature, intruder.row])
    length = len(intruder.token_ids)
    n = min(round(sum(map(sum, which)) / len(which)), length)
    first = min(max(intruder.peak - int(rng.integers(n)), 0), length - n)  # neighbouring tokens, the chosen one among them
    pairs = list(zip(group, which))
    pairs.insert(place, (intruder, [first <= i < first + n for i in range(length)]))
    return [marked(subject.lm.token_strings(example.token_ids.tolist()), each) for example, each in pairs]


def accuracy(name: str, hits: Sequence[bool]) -> dict[str, Score]:
    """The share of right answers."""
    score = proportion(np.array(hits, np.int64), np.ones(len(hits), np.int64))
    assert score is not None
    return {name: score}
