"""Labelled texts: one label for each text, or labelled spans of characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saekit.errors import ConfigError
from saekit.tasks import values


class Span(NamedTuple):
    """Characters `start:end` of a text belong to `concept`."""

    start: int
    end: int
    concept: str


@dataclass(frozen=True)
class Labelled:
    """Texts with either one label each, or spans of characters that belong to concepts.

    Attributes:
        texts: the texts.
        labels: the label of each text; None where spans are labelled.
        spans: the spans of each text; None where whole texts are labelled.

    Raises:
        ConfigError: there are both or neither of labels and spans, not as many as texts, or a span lies outside of its text.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    spans: tuple[tuple[Span, ...], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", values.texts(self.texts, "texts"))
        if (self.labels is None) == (self.spans is None):
            raise ConfigError("Labelled texts have either labels or spans.", "Keep texts of both kinds apart.")
        if self.labels is not None:
            object.__setattr__(self, "labels", values.texts(self.labels, "labels"))
        else:
            object.__setattr__(self, "spans", _spans(self.texts, self.spans))
        count = len(self.labels if self.labels is not None else self.spans or ())
        if count != len(self.texts):
            raise ConfigError(f"There are labels of {count} texts for {len(self.texts)} texts.", "Label each text.")

    @classmethod
    def of_documents(cls, documents: Iterable[Any]) -> Labelled:
        """Texts with spans, from objects that have a `text` and `spans`, such as documents of the laboratory."""
        listed = list(documents)
        return cls(tuple(each.text for each in listed), spans=tuple(tuple(each.spans) for each in listed))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The different labels, or the concepts of the spans, in alphabetical order."""
        if self.labels is not None:
            return tuple(sorted(set(self.labels)))
        return tuple(sorted({span.concept for each in self.spans or () for span in each}))

    def save(self, path: str | Path) -> None:
        """Write the texts and their labels to a JSON file, whole or not at all."""
        values.save(path, "labelled", {"texts": self.texts, "labels": self.labels, "spans": self.spans})

    @classmethod
    def load(cls, path: str | Path) -> Labelled:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: there is no such file, or it does not hold labelled texts.
        """
        return cls(**values.load(path, "labelled", ("texts", "labels", "spans")))


def _spans(texts: Sequence[str], spans: Any) -> tuple[tuple[Span, ...], ...]:
    """Spans as tuples, checked against their texts."""
    if isinstance(spans, str) or not isinstance(spans, Sequence) or len(spans) != len(texts):
        raise ConfigError(f"The spans are not a list for each of {len(texts)} texts.", "Give [] for a text without spans.")
    checked = []
    for number, (text, each) in enumerate(zip(texts, spans)):
        if isinstance(each, str) or not isinstance(each, Sequence):
            raise ConfigError(f"The spans of text {number} are {each!r:.80}, not a list.")
        for span in each:
            match span:
                case [int(start), int(end), str()] if 0 <= start < end <= len(text) and bool not in (type(start), type(end)):
                    pass
                case _:
                    raise ConfigError(
                        f"{span!r:.80} is not a span of the {len(text)} characters of text {number}.",
                        'Write [start, end, "concept"].',
                    )
        checked.append(tuple(Span(*span) for span in each))
    return tuple(checked)
