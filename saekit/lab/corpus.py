"""The corpus: documents by genre, split and seed. Document i of a genre depends only on (seed, genre, split, i)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, count, islice
from random import Random

from saekit.errors import ConfigError
from saekit.lab.bench import find
from saekit.lab.registry import GENRES
from saekit.lab.splits import Split
from saekit.lab.text import Span


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its labelled spans, and its origin."""

    text: str
    spans: tuple[Span, ...]
    genre: str
    split: Split


def documents(
    genre: str | None = None, split: Split = "train", seed: int = 0, n: int | None = None, start: int = 0
) -> Iterator[Document]:
    """Labelled documents, beginning with number `start`. The same arguments give the same bytes.

    Args:
        genre: the genre of all documents. None means all genres, in the proportions of training.
        n: number of documents. None means an endless stream.

    Raises:
        ConfigError: the genre (the message suggests the nearest name) or the split is unknown.
    """
    if split not in ("train", "heldout"):
        raise ConfigError(f"There is no split {split!r}.", "The splits are train and heldout.")
    if genre is not None:
        find(GENRES, genre, "genre")
    return islice(_endless(genre, split, seed, start), n)


def _endless(genre: str | None, split: Split, seed: int, start: int) -> Iterator[Document]:
    names = [genre] if genre else sorted(GENRES)
    bounds = list(accumulate(GENRES[name].weight for name in names))
    for i in count(start):
        rng = Random(f"{seed}/{genre or 'all'}/{split}/{i}")
        name = rng.choices(names, cum_weights=bounds)[0]
        text = GENRES[name].write(rng, split)
        yield Document(text.text, text.spans, name, split)
