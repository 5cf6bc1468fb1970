"""Shuffled batches straight out of the model, from a corpus of which nothing, or only the beginning, is on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.batches import BEGINNING, Cursor, Packing, TokenBatch, token_batches
from saekit.activations.loader.paired import ComparedStores
from saekit.activations.loader.prefetch import ahead
from saekit.activations.loader.rows import RowSource, check_finite, choose_rows
from saekit.activations.loader.source import BUFFER, HELDOUT, ActivationSource, Group, Place, Split, check_split, in_split
from saekit.activations.store.store import ActivationStore
from saekit.activations.store.writer import default_batch_size, default_context
from saekit.errors import ConfigError, CorpusError, StoreMismatch
from saekit.lm.ordinary_tokens import ordinary
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_LIVE_TOKENS = 8192  # in a forward pass of a LiveStore


class LiveActivations(ActivationSource):
    """What :class:`ActivationReader` gives, straight out of the model, at the price of forward passes in every epoch.

    Documents come in the order of the corpus, so rows are mixed within a buffer only.

    Args:
        lm: the model.
        sites: aligned row by row.
        corpus: its documents.
        batch_size: rows of a batch.
        seed, split, heldout, buffer_tokens, epochs, drop_special: as in :class:`ActivationReader`.
        n_tokens: rows of the corpus in an epoch, before the split and BOS are taken out; None: all of it.
        context, packing: as in :func:`saekit.activations.write_store`.
        contexts: contexts in a forward pass; None: about 2048 tokens, 32768 on a GPU.

    Batches are on the device that the model computes the site on.

    Attributes:
        on_fill: called after each forward pass with the rows in the mixing buffer so far, and the rows that fill it. The first
            batch comes when the buffer is full.

    Raises:
        UnknownSite, ContextTooLong, ConfigError: what is asked for cannot be done.
        CorpusError: while iterating: see :meth:`Corpus.documents`; or no row is in the split.
        NonFiniteActivations: while iterating: the model gives NaN or infinity.
    """

    on_fill: Callable[[int, int], None] | None = None

    def __init__(
        self,
        lm: LanguageModel,
        sites: Iterable[str | Site],
        corpus: Corpus,
        *,
        batch_size: int,
        seed: int = 0,
        split: Split = "train",
        heldout: float = HELDOUT,
        buffer_tokens: int = BUFFER,
        epochs: int | None = None,
        drop_special: bool = True,
        n_tokens: int | None = None,
        context: int | None = None,
        packing: Packing = "pack",
        contexts: int | None = None,
    ) -> None:
        check_split(split, heldout)
        self.lm, self.corpus = lm, corpus
        context = default_context(lm) if context is None else context
        self._limit, self._context, self._packing = n_tokens, context, packing
        self._contexts = default_batch_size(lm, context) if contexts is None else contexts
        self._buffer_tokens, self._split, self._heldout, self._drop_special = buffer_tokens, split, heldout, drop_special
        # On a CPU forward passes beside training steps only take turns.
        self._in_thread = lm.device.type != "cpu"
        super().__init__(
            [lm.site(site) for site in sites],
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            split=split,
            heldout=heldout,
            buffer_tokens=buffer_tokens,
            drop_special=drop_special,
            model=lm.name,
            revision=lm.revision,
            corpus=corpus.fingerprint(),
            corpus_tokens=n_tokens,
            context=context,
            packing=packing,
            contexts=self._contexts,
        )
        self._widths = {site: lm.width(site) for site in self.sites}
        self._tokens(BEGINNING, n_tokens)

    @cached_property
    def n_tokens(self) -> int:
        """Rows of one epoch in this split; the first time, the corpus is tokenised to count them."""
        return sum(int(self._wanted(batch).sum()) for batch in self._tokens(BEGINNING, self._limit))

    @property
    def context(self) -> int:
        """Tokens in a context, at most."""
        return self._context

    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`."""
        return self._widths[Site.parse(site)]

    def _tokens(self, start: Cursor, count: int | None) -> Iterator[TokenBatch]:
        return token_batches(
            self.lm,
            self.corpus,
            context=self._context,
            n_tokens=count,
            batch_size=self._contexts,
            packing=self._packing,
            start=start,
        )

    def _wanted(self, batch: TokenBatch) -> Tensor:
        """(B, T) bool: which tokens to give out."""
        wanted_BT = torch.from_numpy(in_split(batch.document_BT, self._split, self._heldout)) & batch.mask_BT
        if self._drop_special:
            wanted_BT &= ordinary(batch.tokens_BT, self.lm.special_ids, position=batch.position_BT)
        return wanted_BT

    def _groups(self, place: Place, epochs: int | None) -> Iterator[Group]:
        while epochs is None or place.epoch < epochs:
            yield from self._epoch(place)
            place = Place(place.epoch + 1)

    def _epoch(self, place: Place) -> Iterator[Group]:
        """Mixing buffers from `place` to the end of its epoch."""
        here = Place(place.epoch, place.group, cursor=place.cursor, seen=place.seen)
        left = None if self._limit is None else self._limit - here.seen
        after, parts, rows = here, list[dict[Site, Tensor]](), 0
        with contextlib.closing(ahead(self._tokens(here.cursor, left) if left != 0 else (), depth=4)) as batches:
            for batch in batches:
                wanted_BT = self._wanted(batch)
                after = Place(place.epoch, here.group + 1, cursor=batch.after, seen=after.seen + batch.n_tokens)
                if wanted_BT.any():
                    parts.append(self._run(batch, wanted_BT))
                    rows += int(wanted_BT.sum())
                if self.on_fill is not None:
                    self.on_fill(min(rows, self._buffer_tokens), self._buffer_tokens)
                if rows >= self._buffer_tokens:
                    yield self._group(here, parts, after)
                    here, parts, rows = after, [], 0
        if parts:
            yield self._group(here, parts, after)
        elif here == Place(place.epoch):
            raise CorpusError(
                f"No document of {self.corpus.source} is in the split {self._split!r}.", "Give more, or change heldout."
            )

    def _run(self, batch: TokenBatch, wanted_BT: Tensor) -> dict[Site, Tensor]:
        acts = self.lm.run(batch.tokens_BT, read=self.sites, logits=None).acts
        rows = {site: choose_rows(acts[site], wanted_BT) for site in self.sites}
        for site, acts_ND in rows.items():
            check_finite(site, acts_ND, torch.stack(acts_ND.aminmax()), RowSource.of(batch, wanted_BT))
        return rows

    def _group(self, place: Place, parts: list[dict[Site, Tensor]], after: Place) -> Group:
        acts = {site: torch.cat([part[site] for part in parts]) for site in self.sites}
        return Group(place, acts, torch.arange(len(acts[self.sites[0]])), after)


class LiveStore(ActivationStore):
    """A store whose corpus goes on: rows to train on come straight out of the model, from all documents; all else is as stored.

    Held-out documents are the same in both.

    Args:
        store: activations of the corpus, or of its beginning.
        lm: the model.
        corpus: the documents.

    Raises:
        ConfigError: the store is of several models.
        StoreMismatch: the store is of another model or corpus.
    """

    def __init__(self, store: ActivationStore, lm: LanguageModel, corpus: Corpus) -> None:
        if isinstance(store, ComparedStores):
            raise ConfigError("Live activations are of one model.", "Train on what is cached of both.")
        super().__init__(store.path, store.manifest)
        store.check_model(lm)
        cached, now = ({**facts, "source": None} for facts in (store.provenance["corpus"], corpus.fingerprint()))
        if cached != now:
            what = f"{store.path} was cached from another corpus than {corpus.source} is now."
            raise StoreMismatch(what, "Put the old one back, train on what is cached, or cache this one to another folder.")
        self._lm, self._corpus = lm, corpus

    def reader(self, sites: Iterable[str | Site], **settings: Any) -> ActivationSource:
        if settings.get("split", "train") != "train":
            return super().reader(sites, **settings)
        sites, context = [self.site(site) for site in sites], self.context
        # As many on every device: where buffers end, and with it the order of rows, depends on it.
        settings |= {"context": context, "packing": self.provenance["packing"], "contexts": max(1, _LIVE_TOKENS // context)}
        return LiveActivations(self._lm, sites, self._corpus, **settings)
