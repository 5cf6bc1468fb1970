"""The input and the output of label methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TermStat(NamedTuple):
    """A relation to a token or word. `item` is a token id for promotes, suppresses and fires_token, else a word's number."""

    role: str
    item: int
    value: float
    rate: float | None
    peak: float | None
    hits: int | None
    score: float


@dataclass(frozen=True)
class Rule:
    """What a label says, as a test that can be run on any text; see :mod:`feature_db.labels.predicates`."""

    test: str
    """The kind of test, a key of :data:`feature_db.labels.predicates.PREDICATES`: word, token, near, class, ..."""
    items: tuple[str | int, ...]
    """Case-folded words, token ids or names of classes. The test is passed where one of them is found."""
    before: int = 0
    """Tokens before the tested one in which `near` looks."""
    after: int = 0
    """Tokens after the tested one in which `near` looks."""

    def to_json(self) -> str:
        """The rule as text, for the column `label.rule`."""
        window = {"before": self.before, "after": self.after} if self.before or self.after else {}
        return json.dumps({"test": self.test, "items": list(self.items), **window}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Rule:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is something else.
        """
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError("a rule is no object")
        test, items, window = facts.get("test"), facts.get("items"), (facts.get("before", 0), facts.get("after", 0))
        whole = all(type(n) is int and 0 <= n < 1 << 20 for n in window)
        if not (isinstance(test, str) and whole and isinstance(items, list) and all(type(item) in (str, int) for item in items)):
            raise ValueError(f"{text[:80]!r} is no rule")
        return cls(test, tuple(items), *window)


@dataclass(frozen=True)
class Label:
    """One description of a feature."""

    method: str
    """Origin of the label: `human`, or a row of :data:`feature_db.labels.rules.LABEL_METHODS`, or what made it."""
    text: str
    rank: float = 0.0
    """The label with the highest rank is shown."""
    keywords: str = ""
    """The words that full-text search finds. The fixed words of a template are left out: they would match every feature."""
    scores: dict[str, float] = field(default_factory=dict)
    """Statistics of the documents that the label was made from. What is measured on held-out documents is added later."""
    model: str | None = None
    prompt: str | None = None
    """Hash of the prompt, for labels that a model wrote."""
    rule: Rule | None = None
    """What the label says as a test of each token of a text; None for labels that only people and models can apply."""


@dataclass
class Evidence:
    """The statistics of one feature."""

    stats: dict[str, list[TermStat]]
    """Relations to tokens and words, by role."""
    text: Callable[[str, int], str]
    """Text of a row's item: (role, item)."""
    occurrences: Callable[[str, int], int]
    count: int
    """Tokens on which the feature fires."""
    class_share: NDArray[np.float64]
    """Share of the firing tokens in each class of :data:`feature_db.labels.token_classes.CLASSES`."""
    class_mass: NDArray[np.float64]
    """Share of the activation on tokens of each class."""
    class_recall: NDArray[np.float64]
    """Share of each class's tokens on which the feature fires."""
    class_base: NDArray[np.float64]
    """Share of all tokens in each class."""
    n_tokens: int
    """Tokens counted."""
    word_classes: Callable[[int], Sequence[str]]
    """Names of the classes of :data:`feature_db.labels.word_classes.WORD_CLASSES` that a word belongs to."""
    class_occurrences: Callable[[str], int]
    """Occurrences of the words in such a class."""
    window: tuple[int, int] = (31, 16)
    """Tokens before and after the peak of an example."""
