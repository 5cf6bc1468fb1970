"""Shuffled batches from a store."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from saekit.activations.loader.source import ActivationSource, Group, Place, ReadSettings
from saekit.activations.store.base import StoredActivations
from saekit.activations.store.shard import as_numpy, as_tensor, storage_dtype
from saekit.errors import ConfigError
from saekit.names.site import Site

STORE_MEMORY = 2**30
"""Bytes of activations that a reader keeps in memory by default."""
_PIECE = 1024  # rows that are read together; a power of two, as are the chunks of a shard


class _Piece(NamedTuple):
    shard: int
    start: int
    stop: int
    first: int
    """Wanted rows in the pieces before it."""
    rows: int
    """Wanted rows in it."""


class ActivationReader(ActivationSource):
    """Shuffled batches out of a store: pieces of 1024 rows in random order fill a buffer, and rows leave it in random order.

    The next buffer is read in a thread while one is in use. Rows are in memory in the stored dtype.

    Args:
        store: what to read.
        sites: sites whose rows a batch holds, aligned, as transcoders need them.
        settings: how rows are given out; fields of :class:`ReadSettings` may be given by name instead.
        memory: bytes of activations that are kept in memory. If all rows of the split fit, they are kept as they are read, and
            later epochs need no disk; if not, two mixing buffers are in memory. Does not change the order.

    Raises:
        ConfigError: a setting is impossible, or not one row is in the split.
        UnknownSite: a site is not in the store.
        StoreCorrupt: a shard cannot be read (while iterating, too).
    """

    def __init__(
        self,
        store: StoredActivations,
        sites: Iterable[str | Site],
        settings: ReadSettings | None = None,
        *,
        memory: int = STORE_MEMORY,
        **changes: Any,
    ) -> None:
        settings = ReadSettings(**changes) if settings is None else dataclasses.replace(settings, **changes)
        super().__init__([store.site(site) for site in sites], settings, stored=store.n_tokens)
        self.store = store
        self._pieces: list[_Piece] = []
        self._wanted: list[np.ndarray] = []  # by shard, a bit a row
        self._linked: list[np.ndarray] = []  # the same, of the rows that begin a pair
        self._n_tokens = self._n_given = 0
        for shard, n_rows in enumerate(store.shard_rows):
            document_N, special_N = store.columns(shard, ["document", "special"])
            wanted_N = settings.wanted(document_N, special_N)
            self._wanted.append(np.packbits(wanted_N))
            if settings.pairs:
                linked_N = settings.linked(wanted_N, document_N, *store.columns(shard, ["position"]))
                linked_N[::_PIECE] = False  # the row before is in another piece
                self._linked.append(np.packbits(linked_N))
                self._n_given += int(linked_N.sum())
            starts = np.arange(0, n_rows, _PIECE)
            for start, rows in zip(starts.tolist(), np.add.reduceat(wanted_N, starts, dtype=np.int64).tolist()):
                if rows:
                    self._pieces.append(_Piece(shard, start, min(start + _PIECE, n_rows), self._n_tokens, rows))
                    self._n_tokens += rows
        self._n_given = self._n_given if settings.pairs else self._n_tokens
        if not self._n_given:
            raise ConfigError(
                f"No document of {store.path} is in the split {settings.split!r}.", "Cache more, or change heldout."
            )
        row_bytes = sum(store.width(site) for site in self.sites) * storage_dtype(store.dtype).itemsize
        self._kept = self._room(self._n_tokens) if self._n_tokens * row_bytes <= memory else None
        self._read_already = np.zeros(len(self._pieces), bool)

    @property
    def n_tokens(self) -> int:
        """Rows of one epoch in this split."""
        return self._n_given

    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`."""
        return self.store.width(site)

    @property
    def context(self) -> int:
        """Tokens in a context, at most."""
        return self.store.context

    def _groups(self, place: Place, epochs: int | None) -> Iterator[Group]:
        epoch, first = place.epoch, place.group
        size = min(self._n_tokens, self._how.buffer_tokens + _PIECE)
        # Two buffers alternate: a buffer is filled again only after the consumer has gone on to the other one.
        buffers = itertools.cycle([self._room(size), self._room(size)] if self._kept is None else [self._kept])
        while epochs is None or epoch < epochs:
            plan = self._plan(epoch)
            for group in range(first, len(plan)):
                buffer = next(buffers)
                rows = self._keep(plan[group]) if self._kept is not None else self._fill(buffer, plan[group])
                acts = {site: as_tensor(x, self._dtype) for site, x in buffer.items()}
                after = Place(epoch, group + 1) if group + 1 < len(plan) else Place(epoch + 1)
                yield Group(Place(epoch, group), acts, torch.from_numpy(rows), after)
            epoch, first = epoch + 1, 0

    def _plan(self, epoch: int) -> list[list[int]]:
        """The pieces of each buffer."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._pieces))
        plan: list[list[int]] = [[]]
        rows = 0
        for index in order.tolist():
            if rows >= self._how.buffer_tokens:
                plan.append([])
                rows = 0
            plan[-1].append(index)
            rows += self._pieces[index].rows
        return plan

    def _fill(self, buffer: dict[Site, np.ndarray], pieces: list[int]) -> np.ndarray:
        """Read the pieces into `buffer`, one after the other; returns the indices of their rows."""
        at = 0
        for index in pieces:
            self._read(index, buffer, at)
            at += self._pieces[index].rows
        return np.arange(at) if not self._how.pairs else self._begin_pairs(pieces, np.arange(at))

    def _keep(self, pieces: list[int]) -> np.ndarray:
        """Read the pieces into their places among all rows, unless they are there already; returns the indices of their rows."""
        assert self._kept is not None
        for index in pieces:
            if not self._read_already[index]:
                self._read(index, self._kept, self._pieces[index].first)
                self._read_already[index] = True
        chosen = [self._pieces[index] for index in pieces]
        rows = np.concatenate([np.arange(piece.first, piece.first + piece.rows) for piece in chosen])
        return rows if not self._how.pairs else self._begin_pairs(pieces, rows)

    def _begin_pairs(self, pieces: list[int], rows: np.ndarray) -> np.ndarray:
        """Those of the rows of `pieces` that begin a pair."""
        linked = []
        for shard, start, stop, _, _ in (self._pieces[index] for index in pieces):
            bits = slice(start // 8, -(-stop // 8))
            wanted, begins = (np.unpackbits(each[shard][bits], count=stop - start) for each in (self._wanted, self._linked))
            linked.append(begins[wanted.nonzero()[0]])
        return rows[np.concatenate(linked).astype(bool)]

    def _read(self, index: int, into: dict[Site, np.ndarray], at: int) -> None:
        shard, start, stop, _, rows = self._pieces[index]
        wanted = np.unpackbits(self._wanted[shard][start // 8 : -(-stop // 8)], count=stop - start).nonzero()[0]
        for site in self.sites:
            # numpy, because torch would use threads of its own in this one.
            stored = self.store.columns(shard, [f"sites/{site}"], start, stop)[0]
            np.take(stored, wanted, axis=0, out=into[site][at : at + rows], mode="clip")

    def _room(self, rows: int) -> dict[Site, np.ndarray]:
        dtype = as_numpy(torch.empty(0, dtype=self._dtype)).dtype
        return {site: np.empty((rows, self.store.width(site)), dtype) for site in self.sites}

    @property
    def _dtype(self) -> torch.dtype:
        return storage_dtype(self.store.dtype)
