"""Shuffled batches out of a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.activations.shard import storage_dtype
from saekit.activations.source import BUFFER, HELDOUT, ActivationSource, Group, Place, Split, check_split, in_split
from saekit.activations.store import ActivationStore
from saekit.errors import ConfigError
from saekit.lm.sites import Site

_PIECE = 1024  # rows read together; a power of two like the chunks of a shard


class _Piece(NamedTuple):
    shard: int
    start: int
    stop: int
    rows: int
    """How many of them are wanted."""


class ActivationReader(ActivationSource):
    """Shuffled batches out of a store: pieces of 1024 rows in random order fill a buffer, rows leave it in random order.

    The next buffer is read in a thread while one is in use, so two are in memory, in the stored dtype.

    Args:
        store: what to read.
        sites: aligned row by row, as transcoders need them.
        batch_size: rows of a batch.
        seed: of the order.
        split: "train", "heldout" or "all", by document; see :func:`saekit.activations.source.in_split`.
        heldout: share of documents that are held out.
        buffer_tokens: rows in the mixing buffer.
        epochs: passes over the split; None never ends.
        drop_special: leave out BOS, EOS and other tokens that stand for no text: their activations are of another size.
        memory: bytes that the rows may take to be kept after the first epoch reads them. Does not change the order.

    Raises:
        ConfigError: a setting is impossible, or not one row is in the split.
        UnknownSite: a site is not in the store.
        StoreCorrupt: a shard cannot be read (while iterating, too).
    """

    def __init__(
        self,
        store: ActivationStore,
        sites: Iterable[str | Site],
        *,
        batch_size: int,
        seed: int = 0,
        split: Split = "train",
        heldout: float = HELDOUT,
        buffer_tokens: int = BUFFER,
        epochs: int | None = None,
        drop_special: bool = True,
        memory: int = 2**30,
    ) -> None:
        check_split(split, heldout)
        self.store = store
        super().__init__(
            [store.site(site) for site in sites],
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            split=split,
            heldout=heldout,
            buffer_tokens=buffer_tokens,
            drop_special=drop_special,
            stored=store.n_tokens,
        )
        self._buffer_tokens = buffer_tokens
        self._pieces: list[_Piece] = []
        self._wanted: list[np.ndarray] = []  # by shard, a bit a row
        for shard, entry in enumerate(store.manifest.shards):
            document_N, special_N = store.columns(shard, ["document", "special"])
            wanted_N = in_split(document_N, split, heldout) & ~(special_N & drop_special)
            self._wanted.append(np.packbits(wanted_N))
            starts = np.arange(0, entry.tokens, _PIECE)
            for start, rows in zip(starts.tolist(), np.add.reduceat(wanted_N, starts, dtype=np.int64).tolist()):
                if rows:
                    self._pieces.append(_Piece(shard, start, min(start + _PIECE, entry.tokens), rows))
        self._n_tokens = sum(piece.rows for piece in self._pieces)
        if not self._n_tokens:
            raise ConfigError(
                f"No document of {store.path} is in the split {split!r}.", "Cache more documents, or change heldout."
            )
        row_bytes = sum(store.width(site) for site in self.sites) * storage_dtype(store.dtype).itemsize
        self._kept: dict[int, dict[Site, Tensor]] | None = {} if self._n_tokens * row_bytes <= memory else None

    @property
    def n_tokens(self) -> int:
        """Rows of one epoch in this split."""
        return self._n_tokens

    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`."""
        return self.store.width(site)

    def _groups(self, place: Place, epochs: int | None) -> Iterator[Group]:
        epoch, first = place.epoch, place.group
        while epochs is None or epoch < epochs:
            plan = self._plan(epoch)
            for group in range(first, len(plan)):
                parts = [self._read(index) for index in plan[group]]
                acts = {site: torch.cat([part[site] for part in parts]) for site in self.sites}
                after = Place(epoch, group + 1) if group + 1 < len(plan) else Place(epoch + 1)
                yield Group(Place(epoch, group), acts, after)
            epoch, first = epoch + 1, 0

    def _plan(self, epoch: int) -> list[list[int]]:
        """Which pieces fill which buffer."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._pieces))
        plan: list[list[int]] = [[]]
        rows = 0
        for index in order.tolist():
            if rows >= self._buffer_tokens:
                plan.append([])
                rows = 0
            plan[-1].append(index)
            rows += self._pieces[index].rows
        return plan

    def _read(self, index: int) -> dict[Site, Tensor]:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        shard, start, stop, rows = self._pieces[index]
        acts = {site: self.store.acts(shard, site, start, stop) for site in self.sites}
        if rows < stop - start:
            bits = self._wanted[shard][start // 8 : -(-stop // 8)]
            wanted = torch.from_numpy(np.unpackbits(bits, count=stop - start).astype(bool))
            acts = {site: x[wanted] for site, x in acts.items()}
        if self._kept is not None:
            self._kept[index] = acts
        return acts
