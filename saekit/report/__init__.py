"""HTML files that show a dictionary: how it was trained, how good it is, what its features are and what they do."""

from saekit.report.content import Content, Found, Section, Steered, gather, search
from saekit.report.evaluation import render_evaluation, write_evaluation
from saekit.report.page import render, write

__all__ = [
    "Content",
    "Found",
    "Section",
    "Steered",
    "gather",
    "render",
    "render_evaluation",
    "search",
    "write",
    "write_evaluation",
]
