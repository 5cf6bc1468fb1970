"""The laboratory: a small language model and its corpus, in which every concept, every fact and every bias is known."""

from __future__ import annotations

import saekit.lab.genres  # noqa: F401  registers every genre, task, contrast and concept
from saekit.lab.concepts import CONCEPTS, Concept
from saekit.lab.corpus import Document, documents
from saekit.lab.registry import CONTRASTS, GENRES, TASKS, Contrast, Genre, Prompt, Task
from saekit.lab.text import Span, Text

__all__ = [
    "CONCEPTS",
    "CONTRASTS",
    "GENRES",
    "TASKS",
    "Concept",
    "Contrast",
    "Document",
    "Genre",
    "Prompt",
    "Span",
    "Task",
    "Text",
    "documents",
]
