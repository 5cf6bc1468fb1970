"""The data that methods are given and return: tasks, contrasts, labelled texts, metrics and rankings.

All are frozen, and can be saved and loaded. Nothing here imports torch before it is needed.
"""

from saekit.tasks.contrast import Contrast
from saekit.tasks.generators import GENERATORS, generate
from saekit.tasks.labelled import Labelled, Span
from saekit.tasks.metric import METRICS, Metric, measured, metric_name, values_of
from saekit.tasks.ranking import Ranking
from saekit.tasks.reading import read_data
from saekit.tasks.task import Task

__all__ = [
    "GENERATORS",
    "METRICS",
    "Contrast",
    "Labelled",
    "Metric",
    "Ranking",
    "Span",
    "Task",
    "generate",
    "measured",
    "metric_name",
    "read_data",
    "values_of",
]
