"""Fuzzing: the judge gets a label and five texts with marks, and says in which of them the marked tokens are right
(Paulo et al. 2024, arXiv 2410.13928).

In the right ones, the tokens on which the feature fires are marked. In the wrong ones, as many other tokens of a text on which it
fires are, or a token on which one of its neighbours fires and it does not. Texts are held out. The score is balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from feature_db.autolabel.shown import marked, marks
from feature_db.chat.model import NoAnswer
from feature_db.scorers.examples import HeldoutExample
from feature_db.scorers.given import Given
from feature_db.scorers.judges.detection import Trial, choices
from feature_db.scorers.judges.judging import TEXTS, Judge, judged
from feature_db.scorers.proportions import Score
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject


def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """Score labels; see :data:`feature_db.scorers.registry.SCORERS`. The options are `judge`, `texts` and `max_tokens`."""
    return judged(subject, labels, "fuzzing", _scores)


async def _scores(subject: Subject, judge: Judge, label: Given) -> Mapping[str, Score]:
    n = int(subject.options.get("texts", TEXTS["fuzzing"]))
    trials = [
        Trial(marked(subject.lm.token_strings(example.token_ids.tolist()), which), right, "active" if right else kind)
        for example, which, right, kind in marked_texts(subject, label.feature, n)
    ]
    if len({trial.right for trial in trials}) < 2:
        raise NoAnswer("there are too few held-out texts to mark rightly and wrongly")
    return await choices(subject, judge, label, trials)


def marked_texts(subject: Subject, feature: int, n: int) -> Iterator[tuple[HeldoutExample, list[bool], bool, str]]:
    """Held-out texts with marks: (text, whether each token is marked, whether the marks are right, kind of a wrong text).

    Args:
        n: texts with right marks at most, and as many with wrong ones. No text has both.
    """
    rng = np.random.default_rng([subject.seed, feature, n])
    found = subject.examples(feature, n + n // 2)
    active = [found.active[i] for i in rng.permutation(len(found.active)).tolist()]
    hard = found.hard[: n // 2]
    # Two thirds of the texts on which the feature fires are marked rightly, and one third wrongly.
    right = active[: max(1, min(n, -(-2 * len(active) // 3)))]
    moved = [other for example in active[len(right) :] if (other := moved_marks(example, rng)) is not None]
    for example in right:
        yield example, marks(example.values.tolist()), True, ""
    for example, which in moved:
        yield example, which, False, "moved"
    for example in hard[: max(len(right) - len(moved), 0)]:
        yield example, [i == example.peak for i in range(len(example.token_ids))], False, "hard"


def moved_marks(example: HeldoutExample, rng: np.random.Generator) -> tuple[HeldoutExample, list[bool]] | None:
    """As many marks as are right, on tokens on which the feature does not fire; None where it fires on most tokens."""
    silent = np.flatnonzero(example.values <= 0)
    n = sum(marks(example.values.tolist()))
    if len(silent) < n:
        return None
    chosen = set(rng.choice(silent, n, replace=False).tolist())
    return example, [i in chosen for i in range(len(example.values))]
