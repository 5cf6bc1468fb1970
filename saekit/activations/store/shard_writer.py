"""Writes activations from the device of the model to shards on disk, in a thread that runs during the forward passes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue, SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.activations.corpus.batches import TokenBatch
from saekit.activations.rows import RowSource, check_finite, choose_rows
from saekit.activations.store.manifest import ShardEntry, shard_name
from saekit.activations.store.shard import ShardBuilder, as_numpy
from saekit.files import write_whole
from saekit.lm.ordinary_tokens import ordinary
from saekit.names.site import Site

_WAITING_BYTES = 2**28
_LOOK_SECONDS = 0.02  # between looks for finished shards while the disk cannot keep up


class _Rows(NamedTuple):
    """Activations at one site on their way to the host."""

    acts_ND: Tensor
    bounds: Tensor
    """(2,) least and greatest number as the model computed it."""
    arrived: torch.cuda.Event | None


@dataclass(frozen=True)
class ShardLayout:
    """Where shards go, and what is in them."""

    folder: Path
    """Folder of the files."""
    first: int
    """Number of the first shard."""
    shard_tokens: int
    """Rows after which a shard ends, always at the end of a batch."""
    dtype: torch.dtype
    """Of the stored numbers."""
    special_ids: Collection[int]
    """Tokens to mark; see :func:`saekit.lm.ordinary_tokens.ordinary`."""


def write_shards(
    passes: Iterable[tuple[TokenBatch, Mapping[Site, Tensor]]], layout: ShardLayout
) -> Generator[ShardEntry, None, None]:
    """Write the activations of forward passes to shards, and yield the entry of each shard once it is safely on disk.

    Activations are converted, put together and written in a thread while the next forward pass runs. That thread writes a shard
    only after the entry of the one before was taken, so that at most one shard is on disk without an entry.

    Args:
        passes: batches and their activations (B, T, ...) by site.
        layout: where shards go, and what is in them.

    Raises:
        NonFiniteActivations: an activation is NaN, infinite or too large for the dtype. Entries of earlier shards come before.
        StorageFull, WorkspaceError: a shard cannot be written. Entries of earlier shards come before.
    """
    thread = _ShardThread(layout)
    try:
        for batch, acts in passes:
            yield from thread.put(batch, acts)
            yield from thread.finished()
        yield from thread.end()
    except GeneratorExit:  # the caller has ended, or could not record the entry that it was given
        for _ in thread.stop():
            pass
        raise
    except BaseException:
        yield from thread.stop()
        raise


def token_columns(source: RowSource, special_ids: Collection[int]) -> dict[str, np.ndarray]:
    """The columns of a shard that say what each of N rows is of.

    Args:
        source: of the rows.
        special_ids: tokens to mark; see :func:`saekit.lm.ordinary_tokens.ordinary`.
    """
    counted_N = ordinary(source.tokens_N, special_ids, position=source.position_N, chosen=source.chosen_N)
    return {
        "tokens": source.tokens_N.numpy().astype(np.int32),
        "position": source.position_N.numpy().astype(np.int32),
        "document": source.document_N.numpy(),
        "special": (~counted_N).numpy(),
    }


class _ShardThread:
    """A thread that makes shards of the batches that it is given, in order."""

    def __init__(self, layout: ShardLayout) -> None:
        self._layout, self._index = layout, layout.first
        self._batches: Queue[tuple[TokenBatch, dict[Site, _Rows]] | None] | None = None
        self._entries: SimpleQueue[ShardEntry] = SimpleQueue()
        self._taken = threading.Semaphore(1)
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="saekit-shards", daemon=True)

    def put(self, batch: TokenBatch, acts: Mapping[Site, Tensor]) -> Iterator[ShardEntry]:
        """Hand over a batch; yields the shards that are finished while it waits for the disk."""
        rows = {site: self._fetch(acts[site], batch.mask_BT) for site in sorted(acts)}
        if self._batches is None:
            size = sum(each.acts_ND.nbytes for each in rows.values())
            self._batches = Queue(max(2, min(32, _WAITING_BYTES // max(size, 1))))
            self._thread.start()
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._batches.put((batch, rows), timeout=_LOOK_SECONDS)
                return
            except Full:
                yield from self.finished()

    def finished(self) -> Iterator[ShardEntry]:
        """The shards that were finished since they were last asked for."""
        while True:
            try:
                entry = self._entries.get_nowait()
            except Empty:
                return
            yield entry
            self._taken.release()

    def end(self) -> Iterator[ShardEntry]:
        """Finish what was handed over, the last shard too; raises the error that stopped the thread."""
        yield from self._join()
        if self._error is not None:
            raise self._error

    def stop(self) -> Iterator[ShardEntry]:
        """Drop what was handed over; yields the shards that are finished all the same."""
        self._stopped = True  # before the thread goes on
        self._taken.release()
        return self._join()

    def _join(self) -> Iterator[ShardEntry]:
        if self._batches is None:
            return
        while self._thread.is_alive():
            try:
                self._batches.put(None, timeout=_LOOK_SECONDS)
                break
            except Full:
                yield from self.finished()
        while self._thread.is_alive():
            yield from self.finished()
            self._thread.join(_LOOK_SECONDS)
        yield from self.finished()

    def _fetch(self, acts: Tensor, mask_BT: Tensor) -> _Rows:
        """Real rows in the stored dtype, on their way to the host; does not wait for a GPU."""
        acts_ND = choose_rows(acts, mask_BT)
        bounds = torch.stack(acts_ND.aminmax())
        acts_ND = acts_ND.to(self._layout.dtype).contiguous()
        if acts.device.type != "cuda":
            return _Rows(acts_ND.cpu(), bounds.cpu(), None)
        acts_ND, bounds = (
            torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in (acts_ND, bounds)
        )
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(acts.device))
        return _Rows(acts_ND, bounds, arrived)

    # In the thread

    def _work(self) -> None:
        assert self._batches is not None
        builder, last = None, None
        try:
            while (item := self._batches.get()) is not None and not self._stopped:
                last, rows = item
                builder = builder or ShardBuilder(self._layout.dtype == torch.bfloat16)
                self._append(builder, last, rows)
                if builder.n_tokens >= self._layout.shard_tokens:
                    self._write(builder, last)
                    builder = None
            if builder is not None and last is not None and not self._stopped:
                self._write(builder, last)
        except BaseException as error:
            self._error = error

    def _append(self, builder: ShardBuilder, batch: TokenBatch, rows: dict[Site, _Rows]) -> None:
        source = RowSource.of(batch, batch.mask_BT)
        columns = token_columns(source, self._layout.special_ids)
        for site, (acts_ND, bounds, arrived) in rows.items():
            if arrived is not None:
                arrived.synchronize()
            check_finite(site, acts_ND, bounds, source)
            columns[f"sites/{site}"] = as_numpy(acts_ND)
        builder.append(columns)

    def _write(self, builder: ShardBuilder, batch: TokenBatch) -> None:
        data = builder.finish()
        digest = hashlib.sha256(data).hexdigest()
        self._taken.acquire()
        if self._stopped:
            return
        file = shard_name(self._index)
        write_whole(self._layout.folder / file, data, checksum=False)  # the manifest has it
        self._entries.put(ShardEntry(file, builder.n_tokens, len(data), digest, batch.after))
        self._index += 1
