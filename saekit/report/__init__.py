"""One HTML file that shows a dictionary: how it was trained, how good it is, what its features are and what they do."""

from saekit.report.content import Content, Found, Section, Steered, gather, search
from saekit.report.page import render, write

__all__ = ["Content", "Found", "Section", "Steered", "gather", "render", "search", "write"]
