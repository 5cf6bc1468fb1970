"""The registries of genres (how documents are written), tasks (how a skill is tested) and contrasts (pairs of texts)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from saekit.lab.splits import Split
from saekit.lab.text import Text

Writer = Callable[[Random, Split], Text]


@dataclass(frozen=True)
class Genre:
    """A kind of document.

    `weight` is its share of the training *documents*. `planted` lists the planted properties and their strength.
    """

    name: str
    description: str
    weight: float
    write: Writer
    planted: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """One question to the model.

    `answer` continues `clean`, and `foil` continues `corrupted`. The two prompts have the same number of tokens. An answer that
    is a word starts with a space. `case` holds what the task's check needs to know about this prompt.
    """

    clean: str
    corrupted: str
    answer: str
    foil: str
    case: object = None


def starts_with_answer(prompt: Prompt, continuation: str) -> bool:
    """The default check: the continuation begins with the answer, and the last word of the answer ends there."""
    said, answer = continuation.strip(), prompt.answer.strip()
    return said.startswith(answer) and not said[len(answer) :][:1].isalnum()


@dataclass(frozen=True)
class Task:
    """A measurable skill or habit.

    The metric "accuracy" is the share of prompts whose continuation passes `check`. Its goal is `at_least` or `at_most`. The
    metric "strength" is the mean of P(answer) / (P(answer) + P(foil)) at the next token. Its goal is `planted`, within 0.05.
    With `sample`, the continuation is drawn at temperature 1 instead of greedily; `new_tokens` is its length.
    """

    name: str
    genre: str
    description: str
    make: Callable[[Random, Split], Prompt]
    at_least: float | None = None
    at_most: float | None = None
    planted: float | None = None
    metric: str = "accuracy"
    check: Callable[[Prompt, str], bool] = starts_with_answer
    sample: bool = False
    new_tokens: int = 6


@dataclass(frozen=True)
class Contrast:
    """Pairs of texts, (positive, negative), that differ in one thing."""

    name: str
    genre: str
    description: str
    make: Callable[[Random, Split], tuple[str, str]]


GENRES: dict[str, Genre] = {}
TASKS: dict[str, Task] = {}
CONTRASTS: dict[str, Contrast] = {}


def add_genre(genre: Genre) -> None:
    """Register `genre`. Names are unique."""
    assert genre.name not in GENRES, f"two genres are called {genre.name}"
    GENRES[genre.name] = genre


def add_task(task: Task) -> None:
    """Register `task`. Names are unique."""
    assert task.name not in TASKS, f"two tasks are called {task.name}"
    TASKS[task.name] = task


def add_contrast(contrast: Contrast) -> None:
    """Register `contrast`. Names are unique."""
    assert contrast.name not in CONTRASTS, f"two contrasts are called {contrast.name}"
    CONTRASTS[contrast.name] = contrast
