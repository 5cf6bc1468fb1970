"""Labels that the rows of a corpus carry beside their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from saekit.activations.corpus.base import Corpus
from saekit.tasks import Labelled
from saekit.tasks.labelled import Span

FIELDS = ("label", "spans")
"""Fields of a record that hold the label of its text, and labelled spans of its characters as [start, end, concept]."""
_LOOKED_AT = 20
"""Rows after which a corpus without any label counts as one without labels."""


def corpus_labels(corpus: Corpus, most: int) -> Labelled | None:
    """The first `most` labelled texts of a corpus; None where it has no labels.

    Texts with spans if the first labelled row has spans, else texts with one label each. Rows without a label of that kind, chats
    and token ids are left out.

    Args:
        corpus: opened with FIELDS among `Fields.also`.
        most: number of texts.

    Raises:
        CorpusError: a row cannot be read.
    """
    texts: list[str] = []
    labels: list[str] = []
    spans: list[tuple[Span, ...]] = []
    for index, row in enumerate(corpus.rows()):
        if len(texts) == most or (index == _LOOKED_AT and not texts):
            break
        text = corpus.document(row, index)
        if not isinstance(row, Mapping) or not isinstance(text, str) or not text.strip():
            continue
        if row.get("spans") is not None and not labels:
            texts.append(text)
            spans.append(tuple(_spans(row["spans"], len(text))))
        elif row.get("label") is not None and not spans:
            texts.append(text)
            labels.append(str(row["label"]))
    if any(spans):
        return Labelled(tuple(texts), spans=tuple(spans))
    return Labelled(tuple(texts), labels=tuple(labels)) if labels else None


def _spans(listed: Any, length: int) -> Iterator[Span]:
    """The spans of a text that can be read."""
    for span in listed if isinstance(listed, list) else []:
        match [span.get(key) for key in Span._fields] if isinstance(span, Mapping) else span:
            case [int(start), int(end), str(concept)] if 0 <= start < end <= length:
                yield Span(start, end, concept)
