"""From activations on the model's device to shards on disk, in a thread beside the forward passes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from queue import Queue
from types import TracebackType
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


class _Rows(NamedTuple):
    """Activations at one site on their way to the host."""

    acts_ND: Tensor
    bounds: Tensor
    """(2,) least and greatest number as the model computed it."""
    arrived: torch.cuda.Event | None


class ShardPipe:
    """Takes batches and writes a shard whenever enough rows have come, always at the end of a batch.

    Use it as a context manager: leaving it writes the last shard, leaving it with an error drops the one in flight.
    An error of the thread is raised at the next :meth:`put` or on leaving.

    Args:
        folder: where shards go.
        first: number of the first shard.
        shard_tokens: rows after which a shard ends.
        dtype: of the stored numbers.
        special_ids: tokens to mark; see :func:`saekit.lm.ordinary_tokens.ordinary`.
        enter: called in the thread with the number and the entry of each shard once it is safely on disk.
    """

    def __init__(
        self,
        folder: Path,
        first: int,
        shard_tokens: int,
        dtype: torch.dtype,
        special_ids: Collection[int],
        enter: Callable[[int, ShardEntry], None],
    ) -> None:
        self._folder, self._index, self._shard_tokens, self._dtype, self._enter = folder, first, shard_tokens, dtype, enter
        self._special_ids = special_ids
        self._queue: Queue[tuple[TokenBatch, dict[Site, _Rows]] | None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="saekit-shards", daemon=True)

    def put(self, batch: TokenBatch, acts: dict[Site, Tensor]) -> None:
        """Hand over the activations (B, T, ...) of `batch`; waits where the disk cannot keep up."""
        rows = {site: self._fetch(acts[site], batch.mask_BT) for site in sorted(acts)}
        if self._queue is None:
            size = sum(each.acts_ND.nbytes for each in rows.values())
            self._queue = Queue(max(2, min(32, _WAITING_BYTES // max(size, 1))))
            self._thread.start()
        if self._error is not None:
            raise self._error
        self._queue.put((batch, rows))

    def __enter__(self) -> ShardPipe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._queue is None:
            return
        if error is not None and self._error is None:
            self._error = error
        self._queue.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _fetch(self, acts: Tensor, mask_BT: Tensor) -> _Rows:
        """Real rows in the stored dtype, on their way to the host; does not wait for a GPU."""
        acts_ND = choose_rows(acts, mask_BT)
        bounds = torch.stack(acts_ND.aminmax())
        acts_ND = acts_ND.to(self._dtype).contiguous()
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
        assert self._queue is not None
        builder, last = None, None
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # so that put never waits for a thread that has ended
            try:
                batch, rows = item
                builder = builder or ShardBuilder(self._dtype == torch.bfloat16)
                self._append(builder, batch, rows)
                last = batch
                if builder.n_tokens >= self._shard_tokens:
                    self._write(builder, batch)
                    builder = None
            except BaseException as error:
                self._error = error
        try:
            if builder is not None and last is not None and self._error is None:
                self._write(builder, last)
        except BaseException as error:
            self._error = error

    def _append(self, builder: ShardBuilder, batch: TokenBatch, rows: dict[Site, _Rows]) -> None:
        source = RowSource.of(batch, batch.mask_BT)
        columns = {
            "tokens": source.tokens_N.numpy().astype(np.int32),
            "position": source.position_N.numpy().astype(np.int32),
            "document": source.document_N.numpy(),
            "special": (~ordinary(source.tokens_N, self._special_ids, position=source.position_N)).numpy(),
        }
        for site, (acts_ND, bounds, arrived) in rows.items():
            if arrived is not None:
                arrived.synchronize()
            check_finite(site, acts_ND, bounds, source)
            columns[f"sites/{site}"] = as_numpy(acts_ND)
        builder.append(columns)

    def _write(self, builder: ShardBuilder, batch: TokenBatch) -> None:
        data = builder.finish()
        file = shard_name(self._index)
        digest = hashlib.sha256(data).hexdigest()
        write_whole(self._folder / file, data, checksum=False)  # the manifest has it
        try:
            self._enter(self._index, ShardEntry(file, builder.n_tokens, len(data), digest, batch.after))
        except BaseException:
            (self._folder / file).unlink(missing_ok=True)
            raise
        self._index += 1
