"""HTML pages on a dictionary: its training, its quality, its features and what steering by them does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.report.evaluation import render_evaluation, write_evaluation
    from saekit.report.page import render, write
    from saekit.report.sweep import render_sweep, write_sweep
    from saekit.report.training import render_training, write_training
    from saekit.views.dictionary import Content, gather
    from saekit.views.search import Detected, Found, Section, chosen, search
    from saekit.views.steering import Steered
    from saekit.views.sweep import Compared, compare, rank
    from saekit.views.training import Trained, gather_training

__all__ = [
    "Compared",
    "Content",
    "Detected",
    "Found",
    "Section",
    "Steered",
    "Trained",
    "chosen",
    "compare",
    "gather",
    "gather_training",
    "rank",
    "render",
    "render_evaluation",
    "render_sweep",
    "render_training",
    "search",
    "write",
    "write_evaluation",
    "write_sweep",
    "write_training",
]

# The templates of reports are those of the web application too, which starts without torch.
_HOMES = {
    "saekit.report.evaluation": ("render_evaluation", "write_evaluation"),
    "saekit.report.page": ("render", "write"),
    "saekit.report.sweep": ("render_sweep", "write_sweep"),
    "saekit.report.training": ("render_training", "write_training"),
    "saekit.views.dictionary": ("Content", "gather"),
    "saekit.views.search": ("Detected", "Found", "Section", "chosen", "search"),
    "saekit.views.steering": ("Steered",),
    "saekit.views.sweep": ("Compared", "compare", "rank"),
    "saekit.views.training": ("Trained", "gather_training"),
}
__getattr__ = attributes(__name__, {name: module for module, names in _HOMES.items() for name in names})
