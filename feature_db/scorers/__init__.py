"""Scores of labels on held-out documents. :data:`SCORERS` is the extension point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feature_db.scorers.registry import SCORERS, Result, Scorer
from saekit.lazy import attributes

if TYPE_CHECKING:
    from feature_db.scorers.given import Given
    from feature_db.scorers.proportions import Score
    from feature_db.scorers.run import Scored, score
    from feature_db.scorers.subject import Subject

__all__ = ["SCORERS", "Given", "Result", "Score", "Scored", "Scorer", "Subject", "score"]

__getattr__ = attributes(
    __name__,
    {
        "Given": "feature_db.scorers.given",
        "Score": "feature_db.scorers.proportions",
        "Scored": "feature_db.scorers.run",
        "Subject": "feature_db.scorers.subject",
        "score": "feature_db.scorers.run",
    },
)
