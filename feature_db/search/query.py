"""What is asked for: the words of a query, and which features may answer it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_db.labels.rules import kinds
from feature_db.search.where import Columns, Condition
from saekit.errors import ConfigError
from saekit.plugins import nearest

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MAX_WORDS, MAX_CHARACTERS = 32, 4096
"""What is read of a query; the rest is left out. Each word takes several lookups."""
_STOP_WORDS = """
    a about after all also am an and any are as at be because been before being both but by can could did do does doing for from
    had has have having he her here hers him his how i if in into is it its just me more most my no nor not of on once only or
    other our out over own same she should so some such than that the their them then there these they this those through to
    too under until up very was we were what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def query_text(query: str) -> str:
    """What is read of a query: its first MAX_CHARACTERS characters, without bytes that are no UTF-8.

    Raises:
        ConfigError: the query is not text.
    """
    if not isinstance(query, str):
        raise ConfigError(f"The query is {query!r:.80}, which is not text.", "Give words as a str.")
    if len(query) > MAX_CHARACTERS:
        query = query[:MAX_CHARACTERS]
        query = query.rpartition(" ")[0] or query  # without a word that was cut
    return query.encode("utf-8", "ignore").decode()


def query_words(query: str) -> list[str]:
    """The first MAX_WORDS words of a query, case-folded, each once. Stop words are left out unless there is no other word.

    A query without any word (quotation marks, "?!") is one word by itself.

    Raises:
        ConfigError: the query is not text.
    """
    query = query_text(query)
    words = [match[0].casefold() for match in WORD.finditer(query)]
    words = list(dict.fromkeys(word[:-2] if word[-2:] in ("'s", "’s") else word for word in words))
    bare = query.strip().casefold()
    words = [word for word in words if word not in STOP_WORDS] or words or ([bare] if bare else [])
    return words[:MAX_WORDS]


@dataclass(frozen=True)
class Filter:
    """Which features a search may return. Scores do not depend on it.

    Raises:
        ConfigError: a kind is unknown, or `density` is no pair of numbers.
    """

    saes: Sequence[int]
    """Ids of dictionaries."""
    kinds: Sequence[str] | None = None
    density: tuple[float, float] = (0.0, 1.0)
    live: bool = True
    """Leave out features that never fired."""
    where: Condition | None = None
    """From :func:`feature_db.search.where.condition`."""

    def __post_init__(self) -> None:
        known = kinds()
        for kind in self.kinds or ():
            if kind not in known:
                raise ConfigError(f"There is no kind of feature {kind!r}.", nearest(kind, known))
        pair = isinstance(self.density, Sequence) and len(self.density) == 2
        if not pair or not all(isinstance(bound, int | float) and bound == bound for bound in self.density):
            raise ConfigError(f"density is {self.density!r}.", "Give the least and the largest share of tokens, like (0, 0.1).")

    def passes(self, of: Columns) -> NDArray[np.bool_]:
        """Whether each of some features passes all that arrays can tell; :attr:`rest` is left."""
        passes = np.ones(len(of.numbers), bool)
        if tuple(self.density) != (0.0, 1.0):
            density = of["density"]
            passes &= (density >= self.density[0]) & (density <= self.density[1])
        if self.live:
            passes &= of["count"] > 0
        if self.kinds is not None:
            passes &= of.of_kind(f"feature.kind IN ({marks(self.kinds)})", tuple(self.kinds))
        for part in () if self.where is None else self.where.conjuncts:
            if part.test is not None:
                passes &= part.test(of)
        return passes

    @property
    def rest(self) -> list[Condition]:
        """Conditions that only the tables can tell."""
        return [] if self.where is None else [part for part in self.where.conjuncts if part.test is None]

    def sql(self) -> tuple[str, list[object]]:
        """A condition on `feature`, and its parameters."""
        condition = f"feature.sae IN ({marks(self.saes)}) AND feature.density BETWEEN ? AND ?"
        parameters: list[object] = [*self.saes, *self.density]
        if self.live:
            condition += " AND feature.count > 0"
        if self.kinds is not None:
            condition += f" AND feature.kind IN ({marks(self.kinds)})"
            parameters += self.kinds
        if self.where is not None:
            condition += f" AND {self.where.sql}"
            parameters += self.where.parameters
        return condition, parameters


def marks(items: Sequence[object]) -> str:
    """Question marks for as many parameters of a statement."""
    return ", ".join("?" * len(items))
