"""Held-out documents: the texts on which labels are scored, with the activations of all features there.

A label is made from documents that the index counted. :class:`Heldout` holds the other documents of the same store, by the rule
that the index itself recorded (:func:`heldout_share`). Labels that models made from an index of other documents are not
scored (:attr:`feature_db.scorers.given.Given.barred`). So no label is scored on a document that it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_db.index.words import Reading, Vocabulary, Words
from feature_db.labels.predicates import Text
from saekit.activations.loader.source import in_split
from saekit.errors import StoreMismatch
from saekit.progress import track

if TYPE_CHECKING:
    from feature_db.index.indexing import Store
    from feature_db.records import IndexedSAE
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

MAX_TOKENS = 200_000
"""Held-out tokens that are read. A larger store is represented by part of its held-out documents, chosen by their numbers."""
MAX_ENTRIES = 1 << 26
"""Activations that are kept, about 0.8 GB. Documents after them are left out."""
_BATCH_TOKENS = 8192


def heldout_share(indexed: IndexedSAE, corpus: Mapping[str, Any]) -> float:
    """The share of documents that the index of a dictionary left out.

    Args:
        indexed: the dictionary.
        corpus: what the index recorded about the text that it counted (:func:`feature_db.store.read.corpus`).

    Raises:
        StoreMismatch: it counted all documents, or only held-out ones, so that there is none to score labels on.
    """
    if "imported" in corpus:
        raise StoreMismatch(
            f"The labels of {indexed.dictionary} cannot be scored: it was imported, without held-out documents.",
            "Add its weights and index it with a store of activations; labels by people are kept.",
        )
    split, _, share = str(corpus.get("split", "")).partition(" ")
    try:
        heldout = float(share)
    except ValueError:
        heldout = 0.0
    if split != "train" or not 0 < heldout < 1:
        counted = "only the held-out documents" if split == "heldout" else "all documents"
        raise StoreMismatch(
            f"The index of {indexed.dictionary} counted {counted} of the text, so no document is left to score its labels on.",
            "Index it again: `saekit index` leaves 5 % of the documents out, and keeps the labels and lists of people.",
        )
    return heldout


@dataclass(frozen=True)
class Codes:
    """Which features fire on which rows, by feature: entries start_F[f] to start_F[f + 1]."""

    start_F: NDArray[np.int64]
    row_E: NDArray[np.int32]
    """Ascending within a feature."""
    value_E: NDArray[np.float32]

    def rows(self, feature: int) -> NDArray[np.int32]:
        """Rows on which a feature fires, ascending."""
        return self.row_E[self.start_F[feature] : self.start_F[feature + 1]]

    def values(self, feature: int) -> NDArray[np.float32]:
        """Its activations on them."""
        return self.value_E[self.start_F[feature] : self.start_F[feature + 1]]

    @cached_property
    def by_row(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(N + 1,) where the entries of each row begin, and the feature of each entry."""
        feature_E = np.repeat(np.arange(len(self.start_F) - 1, dtype=np.int32), np.diff(self.start_F))
        order = np.argsort(self.row_E, kind="stable")
        n = int(self.row_E.max(initial=-1)) + 1
        return np.searchsorted(self.row_E[order], np.arange(n + 1)), feature_E[order]


class Heldout:
    """The held-out documents of a store, read as the index reads documents, with the activations of a dictionary.

    Attributes:
        text: N tokens of D documents in M contexts.
        document_N: number of the document of each token in the corpus.
        place_N: 0 to D - 1, the place of that document among the held-out ones.
        counts_D: (D,) ordinary tokens of each document.
        codes: the activations. Only ordinary tokens have any.
    """

    def __init__(self, text: Text, document_N: NDArray[np.int64], codes: Codes) -> None:
        self.text, self.document_N, self.codes = text, document_N, codes
        self.documents, self.place_N = np.unique(document_N, return_inverse=True)
        self.counts_D = self.per_document(text.counted_rows)

    @classmethod
    def read(
        cls,
        store: Store,
        lm: LanguageModel,
        sae: SAE,
        site: Site,
        heldout: float,
        *,
        max_tokens: int = MAX_TOKENS,
        progress: bool = True,
    ) -> Heldout:
        """Read the held-out documents of a store, and compute the activations of a dictionary on them.

        Args:
            store: activations at `site`.
            lm: the model, for the texts of its tokens.
            sae: the dictionary.
            site: the site that the dictionary reads.
            heldout: share of the documents that the index left out.
            max_tokens: about this number of tokens is read.

        Raises:
            StoreMismatch: the store has no held-out document.
        """
        share = min(heldout, max_tokens / max(store.n_tokens, 1))
        words = Words(Vocabulary.of(lm.token_strings(range(lm.vocab_size))), lm.decode)
        parts = _Parts(sae)
        with track("reading held-out documents", total=store.n_tokens, subject=str(site), enabled=progress) as bar:
            for block in store.stream([site], batch_tokens=_BATCH_TOKENS):
                chosen = in_split(block.document_N.numpy(), "heldout", share)
                if chosen.any():
                    parts.add(block, site, words, chosen)
                bar.update(block.start + len(block.tokens_N))
                if parts.entries > MAX_ENTRIES:
                    break
        if not parts.tokens:
            raise StoreMismatch(
                f"No document of the activations is held out from the index: it leaves out {heldout:.0%} of them by chance.",
                "Cache more documents, or index with a larger share of held-out documents: `saekit index --heldout 0.2`.",
            )
        return parts.joined(words)

    def per_document(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """(D,) how many of the rows lie in each document."""
        return np.bincount(self.place_N[rows], minlength=len(self.documents))


class _Parts:
    """Collects the chosen rows of blocks."""

    def __init__(self, sae: SAE) -> None:
        self._sae = sae
        self.tokens: list[NDArray[np.int32]] = []
        self._documents: list[NDArray[np.int64]] = []
        self._counted: list[NDArray[np.bool_]] = []
        self._readings: list[Reading] = []
        self._codes: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]] = []
        self.entries = self._rows = 0

    def add(self, block: Any, site: Site, words: Words, chosen: NDArray[np.bool_]) -> None:
        """Add the chosen rows of a block, which are all rows of some documents."""
        import torch

        tokens, document = block.tokens_N.numpy().astype(np.int32), block.document_N.numpy().astype(np.int64)
        counted = ~block.special_N.numpy()
        reading = _part(words.read(tokens, block.position_N.numpy().astype(np.int32), document, counted), chosen, self._rows)
        rows = np.flatnonzero(chosen & counted)
        place = np.cumsum(chosen) - 1 + self._rows
        sae = self._sae
        with torch.no_grad():
            code = sae.encode_sparse(block.acts[site][torch.from_numpy(rows)].to(sae.W_dec.device))
        values = (code.values.abs() if sae.cfg.activation_function.signed else code.values).float().cpu().numpy()
        row, entry = np.nonzero(values > 0)
        feature = code.indices.cpu().numpy()[row, entry].astype(np.int32)
        self._codes.append((place[rows][row].astype(np.int32), feature, values[row, entry]))
        self.tokens.append(tokens[chosen])
        self._documents.append(document[chosen])
        self._counted.append(counted[chosen])
        self._readings.append(reading)
        self.entries += len(row)
        self._rows += int(chosen.sum())

    def joined(self, words: Words) -> Heldout:
        """All parts."""
        from scipy.sparse import coo_matrix

        readings = self._readings
        pieces = np.concatenate([*(each.pieces[:-1] for each in readings), [self._rows]])
        columns = {
            name: np.concatenate([getattr(each, name) for each in readings])
            for name in ("word", "word_start", "next_word", "classes")
        }
        row, feature, value = (np.concatenate(part) for part in zip(*self._codes))
        shape = (self._rows, self._sae.cfg.n_latents)
        by_feature = coo_matrix((value, (row, feature)), shape=shape).tocsc()
        by_feature.sort_indices()
        codes = Codes(by_feature.indptr.astype(np.int64), by_feature.indices.astype(np.int32), by_feature.data)
        text = Text(np.concatenate(self.tokens), Reading(pieces, **columns), np.concatenate(self._counted), words.texts)
        return Heldout(text, np.concatenate(self._documents), codes)


def _part(reading: Reading, chosen: NDArray[np.bool_], first: int) -> Reading:
    """The chosen rows of a reading, which are whole pieces; rows count from `first`."""
    place = np.cumsum(chosen) - 1 + first
    begins = np.zeros(len(chosen), bool)
    begins[reading.pieces[:-1]] = True
    start = reading.word_start[chosen]
    return Reading(
        np.append(place[begins & chosen], first + int(chosen.sum())),
        reading.word[chosen],
        np.where(start >= 0, place[np.maximum(start, 0)], -1),
        reading.next_word[chosen],
        reading.classes[chosen],
    )
