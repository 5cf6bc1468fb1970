"""The concepts of every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from saekit.lab.bench import find
from saekit.lab.concepts import CONCEPTS
from saekit.lab.corpus import Document
from saekit.lab.text import Span
from saekit.lab.tokens import Offsets, encode

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Labelled:
    """Tokenised documents with the concepts of every token: N tokens in total, C concepts, M labels.

    Attributes:
        ids: token ids of each document, without BOS.
        concepts: the C names, in the order of the columns of `matrix`.
        token_M, concept_M: token `token_M[m]` (its index over all documents) belongs to concept `concept_M[m]`. The pairs are
            distinct and in ascending order.
    """

    ids: list[list[int]]
    concepts: tuple[str, ...]
    token_M: np.ndarray
    concept_M: np.ndarray

    @property
    def n_tokens(self) -> int:
        """N, the number of tokens."""
        return sum(map(len, self.ids))

    def matrix(self) -> np.ndarray:
        """Labels as a dense array, (N, C) bool."""
        import numpy as np

        labels_NC = np.zeros((self.n_tokens, len(self.concepts)), bool)
        labels_NC[self.token_M, self.concept_M] = True
        return labels_NC

    def names(self) -> list[list[list[str]]]:
        """The names of the concepts of each token of each document."""
        tokens: list[list[str]] = [[] for _ in range(self.n_tokens)]
        for token, concept in zip(self.token_M.tolist(), self.concept_M.tolist()):
            tokens[token].append(self.concepts[concept])
        each = iter(tokens)
        return [[next(each) for _ in row] for row in self.ids]


def label(documents: Iterable[Document], tokenizer: Any = None, concepts: Sequence[str] | None = None) -> Labelled:
    """Tokenise and label documents. A token belongs to a span if the two share a character other than a space.

    Args:
        tokenizer: a fast tokenizer of transformers or a `tokenizers.Tokenizer`. None means the laboratory's.
        concepts: names of concepts, in the order of the columns. None means all concepts, sorted by name.

    Raises:
        ConfigError: a concept is unknown (the message suggests the nearest name), or the tokenizer gives no character offsets.
        ModelNotFound: no tokenizer is given, and the files of the packaged model are missing.
    """
    documents = list(documents)
    names = tuple(sorted(CONCEPTS) if concepts is None else concepts)
    for name in names:
        find(CONCEPTS, name, "concept")
    encoded = encode([document.text for document in documents], tokenizer)
    token_M, concept_M = align(
        [document.text for document in documents], [document.spans for document in documents], encoded.offsets, names
    )
    return Labelled(encoded.ids, names, token_M, concept_M)


def align(
    texts: Sequence[str], spans: Sequence[Sequence[Span]], offsets: Sequence[Offsets], concepts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(token_M, concept_M) of :class:`Labelled` from the character offsets of spans and tokens, both in reading order."""
    import numpy as np

    begin = np.cumsum([0, *map(len, texts)])
    # Spaces at the ends of tokens and spans are trimmed first, so that an overlap of one character is enough.
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    solid = ~np.isin(codes, _spaces())
    place = np.arange(len(solid))
    following = np.minimum.accumulate(np.append(np.where(solid, place, len(solid)), len(solid))[::-1])[::-1]
    preceding = np.maximum.accumulate(np.insert(np.where(solid, place + 1, 0), 0, 0))

    counts = [len(each) for each in offsets]
    chars = np.fromiter(chain.from_iterable(chain.from_iterable(offsets)), np.int64, 2 * sum(counts)).reshape(-1, 2)
    chars = chars + np.repeat(begin[:-1], counts)[:, None]
    token_start, token_end = following[chars[:, 0]], preceding[chars[:, 1]]

    column = {name: index for index, name in enumerate(concepts)}
    wanted = [(s + b, e + b, column[c]) for b, each in zip(begin.tolist(), spans) for s, e, c in each if c in column]
    found = np.array(wanted, np.int64).reshape(-1, 3)
    span_start, span_end = following[found[:, 0]], preceding[found[:, 1]]

    low = np.searchsorted(token_end, span_start, side="right")
    high = np.searchsorted(token_start, span_end, side="left")
    size = np.where(span_start < span_end, np.maximum(high - low, 0), 0)
    token = np.arange(size.sum()) + np.repeat(low - (size.cumsum() - size), size)
    concept = np.repeat(found[:, 2], size)
    kept = token_start[token] < token_end[token]
    pair = np.unique(token[kept] * len(concepts) + concept[kept])
    return pair // max(1, len(concepts)), pair % max(1, len(concepts))


@cache
def _spaces() -> list[int]:
    return [code for code in range(0x3001) if chr(code).isspace()]
