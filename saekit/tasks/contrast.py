"""Contrasts: pairs of texts that differ in one thing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from saekit.errors import ConfigError
from saekit.tasks import values


@dataclass(frozen=True)
class Contrast(Sequence[tuple[str, str]]):
    """Positive texts, and for each a negative text that differs from it in one thing.

    A sequence of (positive, negative) pairs: `for positive, negative in contrast`. A slice is a contrast.

    Attributes:
        name: what the texts differ in.
        positive: texts with the property.
        negative: texts without it, in the same order.

    Raises:
        ConfigError: the texts are not two lists of texts of equal length.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "positive", values.texts(self.positive, "positive texts"))
        object.__setattr__(self, "negative", values.texts(self.negative, "negative texts"))
        if len(self.positive) != len(self.negative):
            raise ConfigError(
                f"Contrast {self.name!r} has {len(self.positive)} positive and {len(self.negative)} negative texts.",
                "Give a negative text for each positive one.",
            )

    @classmethod
    def of(cls, name: str, pairs: Iterable[tuple[str, str]]) -> Contrast:
        """A contrast from (positive, negative) pairs."""
        listed = list(pairs)
        return cls(name, tuple(positive for positive, _ in listed), tuple(negative for _, negative in listed))

    def __len__(self) -> int:
        return len(self.positive)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> Contrast: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Contrast(self.name, self.positive[index], self.negative[index])
        return self.positive[index], self.negative[index]

    def save(self, path: str | Path) -> None:
        """Write the contrast to a JSON file, whole or not at all."""
        values.save(path, "contrast", {"name": self.name, "positive": self.positive, "negative": self.negative})

    @classmethod
    def load(cls, path: str | Path) -> Contrast:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: there is no such file, or it does not hold a contrast.
        """
        found = values.load(path, "contrast", ("name", "positive", "negative"))
        if not isinstance(found["name"], str):
            raise ConfigError(f"{path} does not hold a contrast: its name is not text.")
        return cls(**found)
