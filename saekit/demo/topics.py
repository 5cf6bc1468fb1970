"""What a demonstration looks for, and the texts that it steers and compares with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from saekit.errors import ConfigError
from saekit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.lab import Document
    from trainers import TrainConfig

LAB_QUERIES = {"French": ("french", "stories"), "music": ("music", "stories"), "anger": ("anger", "stories")}
"""Everyday names of concepts of the laboratory, each with the concept and the genre of the prompts to steer. Prompts with the
concept are left out."""
NATURAL = 64
"""Natural texts of the concept, of up to `_NATURAL_WORDS` words each."""
_NATURAL_WORDS = 40
_LEAST_NATURAL = 4
"""With fewer, costs are relative to unsteered text."""
_SHORTEST, _LONGEST = 5, 16
"""Fewest and most words of a prompt. A prompt is the first third of a document: after that many words the topic is settled, so a
change of topic is an effect of steering."""
_DOCUMENTS = 2000
"""Labelled documents of all genres on which hits are checked."""
_HOLDING = 60
"""Fewest documents that hold a concept; if fewer of the above do, more documents are taken."""


@dataclass(frozen=True)
class Topic:
    """A concept to look for."""

    query: str
    words: tuple[str, ...]
    """Words that stand for the concept in a text."""
    concept: str | None = None
    """Name of the concept in the laboratory, whose labels say which tokens belong to it."""


def topic(query: str, *, laboratory: bool) -> Topic:
    """The topic of a query: a concept of the laboratory, by its everyday or its own name, or the plain words of `query`.

    Raises:
        ConfigError: the query has no word.
    """
    if laboratory:
        from saekit.lab import CONCEPTS, words_of

        name, _ = LAB_QUERIES.get(query, (query, ""))
        if (concept := CONCEPTS.get(name)) is not None and concept.words:
            return Topic(query.replace("_", " "), words_of(name), name)
    from feature_db.search import query_words

    if not query.strip():
        raise ConfigError("A query has no word.", 'Give one or more --query "WORDS".')
    return Topic(query, tuple(query_words(query)))


def labelled(concepts: Sequence[str]) -> list[Document]:
    """Held-out documents of the laboratory, including enough documents with each concept."""
    from saekit.lab import documents

    found = list(documents(split="heldout", seed=1, n=_DOCUMENTS))
    for concept in concepts:
        missing = _HOLDING - sum(holds(each, concept) for each in found)
        more = documents(split="heldout", seed=2, n=20 * _DOCUMENTS)
        found += islice((each for each in more if holds(each, concept)), max(missing, 0))
    return found


def holds(document: Document, concept: str) -> bool:
    return any(span.concept == concept for span in document.spans)


def natural_texts(ws: Workspace, mentions: Mentions, topic: Topic) -> list[str]:
    """Beginnings of documents that mention the concept there; none if too few do."""
    found: list[str] = []
    for text in islice(_documents(ws, topic), _DOCUMENTS):
        if mentions.spans(passage := beginning(text)):
            found.append(passage)
        if len(found) == NATURAL:
            break
    return found if len(found) >= _LEAST_NATURAL else []


def beginning(text: str) -> str:
    """The first words of a text, as they are written."""
    words = list(islice(re.finditer(r"\S+", text), _NATURAL_WORDS))
    return text[: words[-1].end()] if words else ""


def _documents(ws: Workspace, topic: Topic) -> Iterable[str]:
    """Documents in which the concept occurs, or may occur."""
    if topic.concept is None:
        return ws.corpus.texts()
    from saekit.lab import documents

    held = documents(_home(topic.concept), "heldout", seed=4, n=_DOCUMENTS)
    return (document.text for document in held if holds(document, str(topic.concept)))


def heldout(ws: Workspace, config: TrainConfig, topic: Topic) -> Iterator[str]:
    """Documents that the dictionary was not trained on.

    For a concept of the laboratory, the first documents are also held out from the training of the model, and do not contain the
    concept. Their genre is that of :data:`LAB_QUERIES`, or the genre in which the concept is most frequent.
    """
    import torch

    from saekit.activations.loader.source import in_split

    if topic.concept is not None:
        from saekit.lab import documents

        genre = dict(LAB_QUERIES.values()).get(topic.concept) or _home(topic.concept)
        for document in documents(genre, "heldout", seed=3, n=_DOCUMENTS):
            if not holds(document, topic.concept):
                yield document.text
    for i, text in enumerate(ws.corpus.texts()):
        if in_split(torch.tensor([i]), "heldout", config.heldout)[0]:
            yield text


def _home(concept: str) -> str:
    """The genre of the laboratory in which the concept is most frequent."""
    from saekit.lab import documents

    spans = ((each.genre, span.concept) for each in documents(seed=3, n=_DOCUMENTS) for span in each.spans)
    return Counter(genre for genre, own in spans if own == concept).most_common(1)[0][0]


def openings(documents: Iterable[str], without: Mentions) -> Iterator[str]:
    """Distinct beginnings of documents that do not mention the concept."""
    seen = set()
    for text in documents:
        words = text.split()
        opening = " ".join(words[: min(max(len(words) // 3, _SHORTEST), _LONGEST)])
        if len(words) > _SHORTEST and opening not in seen and not without.spans(opening):
            seen.add(opening)
            yield opening
