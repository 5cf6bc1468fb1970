"""What a genre hands in: how its documents are written, how it is tested, and which texts contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from saekit.lab.splits import Split
from saekit.lab.text import Text

Writer = Callable[[Random, Split], Text]


@dataclass(frozen=True)
class Genre:
    """A kind of document. `weight` is its share of the training *documents*; `planted` says what was planted and how strongly."""

    name: str
    description: str
    weight: float
    write: Writer
    planted: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """One question to the model.

    `clean` is followed by `answer` and `corrupted`, of as many tokens, by `foil`; both answers start with a space where a word
    follows. `case` is whatever the task's check needs to know of this prompt.
    """

    clean: str
    corrupted: str
    answer: str
    foil: str
    case: object = None


def starts_with_answer(prompt: Prompt, continuation: str) -> bool:
    """The default check: the continuation begins with the answer, and its last word goes no further."""
    said, answer = continuation.strip(), prompt.answer.strip()
    return said.startswith(answer) and not said[len(answer) :][:1].isalnum()


@dataclass(frozen=True)
class Task:
    """A measurable skill or habit.

    `metric` "accuracy": the share of prompts whose continuation passes `check`; it is to be `at_least` or `at_most`.
    `metric` "strength": the mean of P(answer) / (P(answer) + P(foil)) at the next token, to lie within .05 of `planted`.
    `sample`: draw the continuation at temperature 1 rather than greedily; `new_tokens`: its length.
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
    """Enters `genre`; names are unique."""
    assert genre.name not in GENRES, f"two genres are called {genre.name}"
    GENRES[genre.name] = genre


def add_task(task: Task) -> None:
    """Enters `task`; names are unique."""
    assert task.name not in TASKS, f"two tasks are called {task.name}"
    TASKS[task.name] = task


def add_contrast(contrast: Contrast) -> None:
    """Enters `contrast`; names are unique."""
    assert contrast.name not in CONTRASTS, f"two contrasts are called {contrast.name}"
    CONTRASTS[contrast.name] = contrast
