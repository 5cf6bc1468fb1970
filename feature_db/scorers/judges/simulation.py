"""Simulation: the judge predicts from a label how strongly the feature fires on each token of held-out texts (Bills et al. 2023).

The score is the Pearson correlation of predicted and true activations over all tokens of all texts: some on which the feature
fires, some random, some hard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.autolabel.shown import one_line, quoted
from feature_db.scorers.examples import HeldoutExample
from feature_db.scorers.given import Given
from feature_db.scorers.judges.judging import TEXTS, Judge, each_answer, judged, read_levels
from feature_db.scorers.proportions import Score, auroc
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject

_RESAMPLES = 500

Predicted = Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]]
"""Predicted and true activations of the tokens of each text."""


def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
    """Score labels; see :data:`feature_db.scorers.registry.SCORERS`. The options are `judge`, `texts` and `max_tokens`."""
    return judged(subject, labels, "simulation", _scores)


def texts_of(subject: Subject, feature: int, n: int) -> list[HeldoutExample]:
    """Held-out texts: up to `n` on which the feature fires, and as many others, half of them hard."""
    found = subject.examples(feature, n)
    hard = found.hard[: len(found.active) // 2]
    return [*found.active, *hard, *found.random[: len(found.active) - len(hard)]]


async def _scores(subject: Subject, judge: Judge, label: Given) -> Mapping[str, Score]:
    n = int(subject.options.get("texts", TEXTS["simulation"]))

    async def answer(example: HeldoutExample) -> list[int]:
        tokens = subject.lm.token_strings(example.token_ids.tolist())
        pieces = "\n".join(f"{i}: {one_line(token)!r}" for i, token in enumerate(tokens, start=1))
        return await judge(lambda text: read_levels(text, len(tokens)), label=quoted(subject.said(label)), pieces=pieces)

    found = await each_answer(texts_of(subject, label.feature, n), answer)
    return correlations("simulation", [(np.array(levels, float), example.values) for example, levels in found], subject.seed)


def correlations(name: str, predicted: Predicted, seed: int) -> dict[str, Score]:
    """The correlation over tokens, with an interval from resampled texts; and how well the largest prediction in a text tells
    the texts on which the feature fires from others (area under the ROC curve).

    A prediction that is the same for all tokens has the correlation 0: it says nothing.
    """
    sums = np.array([_sums(np.asarray(p, float), np.asarray(a, float)) for p, a in predicted])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_RESAMPLES, len(sums)))
    low, high = np.quantile(_pearson(sums[drawn].sum(1)), [0.025, 0.975]).tolist()
    value = float(_pearson(sums.sum(0)))
    scores = {name: Score(value, int(sums[:, 0].sum()), min(low, value), max(high, value))}
    fires = np.array([a.max(initial=0.0) > 0 for _, a in predicted])
    largest = np.array([p.max(initial=0.0) for p, _ in predicted])
    area = auroc(largest[fires], largest[~fires])
    return scores if area is None else scores | {f"{name}_auroc": area}


def _sums(x: NDArray[Any], y: NDArray[Any]) -> list[float]:
    return [len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]


def _pearson(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation from (..., 6) sums of n, x, y, xx, yy, xy; 0 where one of the two does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0)
    tiny = 1e-12 * (n * xx) * (n * yy)
    return np.where(spread > tiny, (n * xy - x * y) / np.sqrt(np.where(spread > tiny, spread, 1.0)), 0.0)
