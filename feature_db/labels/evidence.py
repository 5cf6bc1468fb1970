"""The input and the output of label methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TermStat(NamedTuple):
    """A row of `token_stat`. `item` is a token id for promotes, suppresses and fires_token, else a word's number."""

    role: str
    item: int
    value: float
    rate: float | None
    peak: float | None
    hits: int | None
    score: float


@dataclass(frozen=True)
class Label:
    """One description of a feature."""

    method: str
    """Origin of the label: `human`, `words`, `pieces`, `peaks`, `class`, `before`, `context`, `promotes`, ..."""
    text: str
    rank: float = 0.0
    """The label with the highest rank is shown."""
    keywords: str = ""
    """The words that full-text search finds. The fixed words of a template are left out: they would match every feature."""
    scores: dict[str, float] = field(default_factory=dict)
    model: str | None = None
    prompt: str | None = None
    """Hash of the prompt, for labels that a model wrote."""


@dataclass
class Evidence:
    """The statistics of one feature."""

    stats: dict[str, list[TermStat]]
    """Rows of `token_stat` by role."""
    text: Callable[[str, int], str]
    """Text of a row's item: (role, item)."""
    occurrences: Callable[[str, int], int]
    count: int
    """Tokens on which the feature fires."""
    class_share: NDArray[np.float64]
    """Share of the firing tokens in each class of :data:`feature_db.labels.token_classes.CLASSES`."""
    class_recall: NDArray[np.float64]
    """Share of each class's tokens on which the feature fires."""
    class_base: NDArray[np.float64]
    """Share of all tokens in each class."""
