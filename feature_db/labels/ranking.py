"""Which label of a feature is shown: the one with the highest rank.

People's labels come first (:data:`feature_db.labels.rules.HUMAN_RANK`). A label that was scored on held-out documents has a rank
from 0 to 1: twice its balanced accuracy less one, which is 0 for chance and 1 for a perfect label. For rules it is at most their
F1, since a rule can have a high balanced accuracy and still be wrong most of the times that it fires.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEAST = 0.001


def measured_rank(scores: Mapping[str, float], deciding: Sequence[str]) -> float | None:
    """The rank of a label by its scores; None if nothing that decides was measured.

    Args:
        scores: of the label, by metric.
        deciding: the metrics that decide; the first one that was measured is taken.
    """
    main = main_score(scores, deciding)
    return None if main is None else max(min(2 * main - 1, scores.get("f1", 1.0)), LEAST)


def main_score(scores: Mapping[str, float], deciding: Sequence[str]) -> float | None:
    """The score by which a label is judged; None if it was not measured."""
    return next((scores[metric] for metric in deciding if metric in scores), None)
