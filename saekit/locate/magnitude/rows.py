"""The texts that magnitudes are measured on, as rows of token ids whose tokens belong to classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saekit.errors import ConfigError
from saekit.plugins import nearest
from saekit.tasks import Contrast, Labelled, Task

if TYPE_CHECKING:
    from saekit.activations.store.base import StoredActivations
    from saekit.lm import LanguageModel

    Data = Task | Contrast | Labelled | StoredActivations | Sequence[str] | Sequence[Sequence[int]]

NONE = -1
"""The class of tokens that belong to none."""


class Classed(NamedTuple):
    """Texts whose tokens belong to K classes.

    names: of the classes.
    rows: token ids of each text, with BOS where the model's texts begin with it, cut where the context ends.
    classes: the class of each token of each row; :data:`NONE` for tokens of no class.
    """

    names: tuple[str, ...]
    rows: list[list[int]]
    classes: list[np.ndarray]


def sides(lm: LanguageModel, data: Any, label: str | None = None) -> Classed:
    """Two classes: 0 for what lacks a property, 1 for what has it.

    Args:
        data: a contrast (positive texts are 1); a task (clean prompts are 1, corrupted ones 0); or labelled texts or spans.
        label: of labelled data, the label or concept that is class 1. None: the second of two labels in alphabetical order, or
            the only concept of spans.

    Raises:
        ConfigError: the data are of another kind or lack a class, or there is no such label.
    """
    if isinstance(data, Contrast | Task):
        clean = isinstance(data, Task)
        positive, negative = (data.clean, data.corrupted) if isinstance(data, Task) else (data.positive, data.negative)
        rows = _rows(lm, [each for pair in zip(positive, negative) for each in pair])
        names = ("corrupted", "clean") if clean else ("negative", "positive")
        return Classed(names, rows, [np.full(len(row), 1 - n % 2) for n, row in enumerate(rows)])
    if not isinstance(data, Labelled):
        raise ConfigError(f"{type(data).__name__} has no two sides to compare.", "Give a contrast, a task, or labelled texts.")
    found = classed(lm, data)
    label = _label(data, found.names) if label is None else label
    if label not in found.names:
        raise ConfigError(f"No text has the label {label!r}.", nearest(label, found.names))
    one = found.names.index(label)
    if data.spans is None:
        return Classed((f"not {label}", label), found.rows, [(each == one).astype(np.int64) for each in found.classes])
    of_label = classed(lm, Labelled(data.texts, spans=tuple(tuple(s for s in each if s.concept == label) for each in data.spans)))
    return Classed((f"not {label}", label), of_label.rows, [each + 1 for each in of_label.classes])


def _label(data: Labelled, names: Sequence[str]) -> str:
    if len(names) == (2 if data.spans is None else 1):
        return names[-1]
    raise ConfigError(f"There are {len(names)} labels, and two sides are compared.", f"Choose label= from {', '.join(names)}.")


def classed(lm: LanguageModel, data: Labelled) -> Classed:
    """One class for each label or concept. A token in several spans belongs to the concept that is first in alphabetical order.

    Raises:
        ConfigError: there are spans, and the tokenizer gives no character offsets.
    """
    names = data.concepts
    if data.labels is not None:
        rows = _rows(lm, data.texts)
        return Classed(names, rows, [np.full(len(row), names.index(label)) for row, label in zip(rows, data.labels)])
    from saekit.lab.labels import align
    from saekit.lab.tokens import encode

    encoded = encode(list(data.texts), lm.text.tokenizer)
    token_M, concept_M = align(data.texts, data.spans or (), encoded.offsets, names)
    class_N = np.full(sum(map(len, encoded.ids)), NONE)
    class_N[token_M[::-1]] = concept_M[::-1]
    rows = [lm.text.begun(ids, lm.bos_token_id)[: lm.max_context] for ids in encoded.ids]
    parts = np.split(class_N, np.cumsum([len(ids) for ids in encoded.ids])[:-1])
    first = [len(lm.text.begun(ids, lm.bos_token_id)) - len(ids) for ids in encoded.ids]
    classes = [np.concatenate([np.full(n, NONE), part])[: len(row)] for n, part, row in zip(first, parts, rows)]
    return Classed(names, rows, classes)


def plain(lm: LanguageModel, data: Any) -> Classed:
    """All texts of any data as one class.

    Raises:
        ConfigError: the data are no texts.
    """
    if isinstance(data, Contrast | Task):
        found = sides(lm, data)
        return Classed(("all",), found.rows, [np.zeros(len(row), np.int64) for row in found.rows])
    texts = data.texts if isinstance(data, Labelled) else data
    if data is None or isinstance(texts, str):
        raise ConfigError(f"{data!r:.60} are no texts.", "Give a list of texts, labelled texts, a contrast, or a task.")
    rows = _rows(lm, texts)
    return Classed(("all",), rows, [np.zeros(len(row), np.int64) for row in rows])


def _rows(lm: LanguageModel, texts: Any) -> list[list[int]]:
    from saekit.lm.run.batches import text_rows

    return text_rows(lm, texts)


def batches(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the rows that run together: those of similar length; empty rows are left out."""
    order = sorted((n for n, row in enumerate(rows) if row), key=lambda n: len(rows[n]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
