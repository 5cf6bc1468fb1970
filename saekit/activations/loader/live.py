"""Shuffled batches straight out of the model, without a store."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.batches import BEGINNING, Cursor, TokenBatch, TokenLayout, token_batches
from saekit.activations.loader.source import ActivationSource, Group, Place, ReadSettings
from saekit.activations.prefetch import prefetch
from saekit.activations.rows import RowSource, check_finite, choose_rows
from saekit.errors import CorpusError
from saekit.lm.ordinary_tokens import ordinary
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

OnFill = Callable[[int, int], None]


class LiveActivations(ActivationSource):
    """The batches of :class:`ActivationReader`, computed by the model when they are needed, in every epoch again.

    Documents are read in the order of the corpus; rows are shuffled within the mixing buffer only. Shuffle the corpus
    (:meth:`Corpus.open`) where its documents are sorted.

    Args:
        lm: the model.
        sites: sites whose rows a batch holds, aligned.
        corpus: its documents.
        settings: how rows are given out; fields of :class:`ReadSettings` may be given by name instead.
        n_tokens: rows of the corpus in an epoch, before the split and special tokens are taken out; None: all of it.
        layout: how documents become contexts; fields of :class:`TokenLayout` may be given by name instead.
        on_fill: called after each forward pass with the rows in the mixing buffer so far, and the rows that fill it. The first
            batch comes when the buffer is full.

    Batches are on the device that the model computes the site on.

    Attributes:
        known_tokens: rows of one epoch in this split, where whoever made this knows them without reading the corpus.

    Raises:
        UnknownSite, ContextTooLong, ConfigError: what is asked for cannot be done.
        CorpusError: while iterating: see :meth:`Corpus.documents`; or no row is in the split.
        NonFiniteActivations: while iterating: the model gives NaN or infinity.
    """

    known_tokens: int | None = None

    def __init__(
        self,
        lm: LanguageModel,
        sites: Iterable[str | Site],
        corpus: Corpus,
        settings: ReadSettings | None = None,
        *,
        n_tokens: int | None = None,
        layout: TokenLayout | None = None,
        on_fill: OnFill | None = None,
        **changes: Any,
    ) -> None:
        of_layout = {name: changes.pop(name) for name in ("context", "packing", "contexts", "train_on") if name in changes}
        settings = ReadSettings(**changes) if settings is None else dataclasses.replace(settings, **changes)
        self.lm, self.corpus, self._limit, self._on_fill = lm, corpus, n_tokens, on_fill
        self._layout = dataclasses.replace(layout or TokenLayout(), **of_layout).resolve(lm)
        # On a CPU, forward passes in a thread would compete with the training steps for the same cores.
        self._in_thread = lm.device.type != "cpu"
        super().__init__(
            [lm.site(site) for site in sites],
            settings,
            model=lm.name,
            revision=lm.revision,
            corpus=corpus.fingerprint(),
            corpus_tokens=n_tokens,
            **self._layout.recorded,
        )
        self._widths = {site: lm.width(site) for site in self.sites}
        self._tokens(BEGINNING, n_tokens)

    @cached_property
    def n_tokens(self) -> int:
        """Rows of one epoch in this split. The first call tokenises the corpus to count them, where they are not known."""
        if self.known_tokens is not None:
            return self.known_tokens
        return sum(int(self._linked(batch, self._wanted(batch)).sum()) for batch in self._tokens(BEGINNING, self._limit))

    @property
    def context(self) -> int:
        """Tokens in a context, at most."""
        assert self._layout.context is not None
        return self._layout.context

    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`."""
        return self._widths[Site.parse(site)]

    def _tokens(self, start: Cursor, count: int | None) -> Iterator[TokenBatch]:
        assert self._layout.contexts is not None
        return token_batches(
            self.lm,
            self.corpus,
            context=self.context,
            n_tokens=count,
            batch_size=self._layout.contexts,
            packing=self._layout.packing,
            start=start,
            train_on=self._layout.train_on,
        )

    def _wanted(self, batch: TokenBatch) -> Tensor:
        """(B, T) bool: which tokens to give out."""
        special_BT = ~ordinary(batch.tokens_BT, self.lm.special_ids, position=batch.position_BT, chosen=batch.chosen_BT)
        return torch.from_numpy(self._how.wanted(batch.document_BT.numpy(), special_BT.numpy())) & batch.mask_BT

    def _linked(self, batch: TokenBatch, wanted_BT: Tensor) -> Tensor:
        """(N,) bool: which of the wanted tokens begin a pair; all of them without `pairs`."""
        flat = (each.flatten().numpy() for each in (wanted_BT, batch.document_BT, batch.position_BT))
        return torch.from_numpy(self._how.linked(*flat))[wanted_BT.flatten()]

    def _groups(self, place: Place, epochs: int | None) -> Iterator[Group]:
        while epochs is None or place.epoch < epochs:
            yield from self._epoch(place)
            place = Place(place.epoch + 1)

    def _epoch(self, place: Place) -> Iterator[Group]:
        """Mixing buffers from `place` to the end of its epoch."""
        here = Place(place.epoch, place.group, cursor=place.cursor, seen=place.seen)
        left = None if self._limit is None else self._limit - here.seen
        after, parts, linked, rows = here, list[dict[Site, Tensor]](), list[Tensor](), 0
        with contextlib.closing(prefetch(self._tokens(here.cursor, left) if left != 0 else (), depth=4)) as batches:
            for batch in batches:
                wanted_BT = self._wanted(batch)
                after = Place(place.epoch, here.group + 1, cursor=batch.after, seen=after.seen + batch.n_tokens)
                if wanted_BT.any():
                    parts.append(self._run(batch, wanted_BT))
                    linked.append(self._linked(batch, wanted_BT))
                    rows += int(wanted_BT.sum())
                if self._on_fill is not None:
                    self._on_fill(min(rows, self._how.buffer_tokens), self._how.buffer_tokens)
                if rows >= self._how.buffer_tokens:
                    yield self._group(here, parts, linked, after)
                    here, parts, linked, rows = after, [], [], 0
        if parts:
            yield self._group(here, parts, linked, after)
        elif here == Place(place.epoch):
            raise CorpusError(
                f"No document of {self.corpus.source} is in the split {self._how.split!r}.", "Give more, or change heldout."
            )

    def _run(self, batch: TokenBatch, wanted_BT: Tensor) -> dict[Site, Tensor]:
        acts = self.lm.run(batch.tokens_BT, read=self.sites, logits=None).acts
        rows = {site: choose_rows(acts[site], wanted_BT) for site in self.sites}
        for site, acts_ND in rows.items():
            check_finite(site, acts_ND, torch.stack(acts_ND.aminmax()), RowSource.of(batch, wanted_BT))
        return rows

    def _group(self, place: Place, parts: list[dict[Site, Tensor]], linked: list[Tensor], after: Place) -> Group:
        acts = {site: torch.cat([part[site] for part in parts]) for site in self.sites}
        return Group(place, acts, torch.cat(linked).nonzero()[:, 0], after)
