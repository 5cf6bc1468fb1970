"""Labels of features. :data:`LABEL_METHODS` is the extension point."""

from __future__ import annotations

from feature_db.labels.evidence import Evidence, Label
from feature_db.labels.rules import LABEL_METHODS, LabelMethod

__all__ = ["LABEL_METHODS", "Evidence", "Label", "LabelMethod"]
