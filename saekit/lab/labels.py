"""Which concepts every token belongs to."""

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
    """Documents as tokens that know their concepts. N tokens in all, one document after the other; C concepts.

    Attributes:
        ids: token ids of each document, without BOS.
        concepts: the C names, in the order of the columns.
        token_M, concept_M: the M labels: token `token_M[m]` (counted over all documents) belongs to concept `concept_M[m]`. Each
            pair once, in ascending order.
    """

    ids: list[list[int]]
    concepts: tuple[str, ...]
    token_M: np.ndarray
    concept_M: np.ndarray

    @property
    def n_tokens(self) -> int:
        """N."""
        return sum(map(len, self.ids))

    def matrix(self) -> np.ndarray:
        """(N, C) bool."""
        import numpy as np

        labels_NC = np.zeros((self.n_tokens, len(self.concepts)), bool)
        labels_NC[self.token_M, self.concept_M] = True
        return labels_NC

    def names(self) -> list[list[list[str]]]:
        """Concepts of each token of each document."""
        tokens: list[list[str]] = [[] for _ in range(self.n_tokens)]
        for token, concept in zip(self.token_M.tolist(), self.concept_M.tolist()):
            tokens[token].append(self.concepts[concept])
        each = iter(tokens)
        return [[next(each) for _ in row] for row in self.ids]


def label(documents: Iterable[Document], tokenizer: Any = None, concepts: Sequence[str] | None = None) -> Labelled:
    """Tokenise and label documents. A token belongs to a span that it overlaps by a character other than a space.

    Args:
        tokenizer: Hugging Face's fast kind or a `tokenizers.Tokenizer`; None is the laboratory's.
        concepts: which ones, in this order; None is all, by name.

    Raises:
        ConfigError: there is no such concept (the message names the nearest), or the tokenizer does not tell which characters a
            token covers.
        ModelNotFound: no tokenizer is given, and this installation lacks the packaged model.
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
    """(token_M, concept_M) of :class:`Labelled` from the characters of spans and tokens, those of each text in reading order."""
    import numpy as np

    begin = np.cumsum([0, *map(len, texts)])
    # Ends of tokens and spans move inwards to the next character that is no space: then any overlap at all counts.
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
