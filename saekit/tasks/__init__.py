"""The data that methods are given and return: tasks, contrasts, labelled texts, metrics and rankings.

All are frozen, and can be saved and loaded. Nothing here imports torch before it is needed.
"""

from saekit.tasks.contrast import Contrast
from saekit.tasks.labelled import Labelled, Span
from saekit.tasks.metric import METRICS, Metric, measured, metric_name, values_of
from saekit.tasks.ranking import Ranking
from saekit.tasks.task import Task

__all__ = ["METRICS", "Contrast", "Labelled", "Metric", "Ranking", "Span", "Task", "measured", "metric_name", "values_of"]
