"""The laboratory: a small language model and its generated corpus, whose concepts, facts and biases are all known.

::

    from saekit import LanguageModel, lab

    lm = LanguageModel.load("lab")
    task = lab.task("fact_capital")                      # prompt pairs of equal length, answers, foils, ids
    pairs = lab.contrast("language_french", n=100)       # pairs of texts that differ in one thing
    labelled = lab.label(lab.documents(n=1000))          # the concepts of every token
"""

from __future__ import annotations

import saekit.lab.genres
import saekit.lab.skills  # noqa: F401  the import registers its task
from saekit.lab.bench import BoundTask, concepts, contrast, task, words_of
from saekit.lab.concepts import CONCEPTS, Concept
from saekit.lab.corpus import Document, documents
from saekit.lab.labels import Labelled, label
from saekit.lab.registry import CONTRASTS, GENRES, TASKS, Contrast, Genre, Prompt, Task
from saekit.lab.text import Span, Text

__all__ = [
    "CONCEPTS",
    "CONTRASTS",
    "GENRES",
    "TASKS",
    "BoundTask",
    "Concept",
    "Contrast",
    "Document",
    "Genre",
    "Labelled",
    "Prompt",
    "Span",
    "Task",
    "Text",
    "concepts",
    "contrast",
    "documents",
    "label",
    "task",
    "words_of",
]
