"""The rows of a store, computed by the model each time they are read, without a disk."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.batches import BEGINNING, TokenBatch
from saekit.activations.prefetch import prefetch
from saekit.activations.rows import RowSource, check_finite, choose_rows
from saekit.activations.store.base import Block, next_stop, template_facts
from saekit.activations.store.plan import CacheConfig, StorePlan, check_documents
from saekit.activations.store.shard_writer import token_columns
from saekit.names.site import Site
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


class ComputedActivations:
    """What :func:`write_store` would store, computed instead: :meth:`stream` gives the blocks of such a store, bit for bit.

    Numbers are rounded to the dtype in which they would be stored. Several sites cost one forward pass.

    Args:
        lm: the model.
        sites: the sites of the store. Activations at other sites of the model can be read as well.
        corpus: its documents.
        config: which rows the store would hold; fields of :class:`CacheConfig` may be given by name instead.
        recorded: provenance of a store with the same rows, where there is one: it may say more about the corpus.
        known_tokens: number of rows, where it is known. Otherwise the corpus is tokenised to count them.
        progress: show a bar while rows are counted.

    Raises:
        UnknownSite, ContextTooLong, ConfigError, CorpusError: what is asked for cannot be done.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Iterable[str | Site],
        corpus: Corpus,
        config: CacheConfig | None = None,
        *,
        recorded: Mapping[str, Any] | None = None,
        known_tokens: int | None = None,
        progress: bool = True,
        **changes: Any,
    ) -> None:
        config, self.sites = dataclasses.replace(config or CacheConfig(), **changes), sorted({lm.site(site) for site in sites})
        config.check(lm, self.sites)
        check_documents(lm, corpus, config.train_on)
        self.lm, self._plan = lm, StorePlan(lm, self.sites, corpus, config)
        self._recorded, self._known, self._progress = recorded, known_tokens, progress

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.lm.name}, {self._plan.corpus.source}, {', '.join(map(str, self.sites))})"

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the activations are of, as a store records it."""
        if self._recorded is not None:
            return dict(self._recorded)
        chats = template_facts(self.lm) if self._plan.corpus.has_chats else {}
        return self._plan.provenance | chats

    @cached_property
    def n_tokens(self) -> int:
        """Rows."""
        if self._known is not None:
            return self._known
        done, limit = 0, self._plan.config.n_tokens
        with (
            track("counting", total=limit, subject="tokens", enabled=self._progress) as bar,
            contextlib.closing(prefetch(self._plan.batches(BEGINNING, limit), depth=4)) as batches,
        ):
            for batch in batches:
                done += batch.n_tokens
                bar.update(done)
            bar.end(done)
        return done

    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`."""
        return self.lm.width(self.lm.site(site))

    def stream(
        self, sites: Iterable[str | Site], *, batch_tokens: int = 4096, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Block]:
        """All rows in order, as :meth:`StoredActivations.stream` gives them. The model runs for blocks with activations only.

        Activations are on the model's device.

        Args:
            sites, batch_tokens, start, part: as there.

        Raises:
            UnknownSite: the model has no such site.
            CorpusError: a document cannot be read.
            NonFiniteActivations: the model gives NaN or infinity, or more than the dtype holds.
        """
        wanted, number = [self.lm.site(site) for site in sites], 0
        for shard in self._shards():
            for block in shard.blocks(batch_tokens, start):
                chosen = wanted if number % part[1] == part[0] else []
                number += 1
                yield self._block(shard, block, chosen)

    def _shards(self) -> Iterator[_Shard]:
        """The rows of each shard, read as far as they are asked for."""
        with contextlib.closing(prefetch(self._plan.batches(BEGINNING, self._plan.config.n_tokens), depth=4)) as batches:
            first, ended = 0, False
            while not ended:
                shard = _Shard(first, batches, self._plan.shard_tokens, self.lm.special_ids)
                yield shard
                first, ended = first + shard.rows, shard.last

    def _block(self, shard: _Shard, rows: range, sites: list[Site]) -> Block:
        overlapping = shard.batches_of(rows)
        parts = [self._run(each, sites) for each in overlapping] if sites else []
        first = overlapping[0].start
        inside = slice(rows.start - first, rows.stop - first)
        columns = {
            f"{name}_N": torch.from_numpy(np.concatenate([each.columns[name] for each in overlapping])[inside])
            for name in overlapping[0].columns
        }
        acts = {site: torch.cat([part[site] for part in parts])[inside].float() for site in sites}
        return Block(shard.first + rows.start, acts=acts, **columns)

    def _run(self, each: _Batch, sites: list[Site]) -> dict[Site, Tensor]:
        """The rows of a batch at each site, as they would be stored. Kept, since the next block may need them as well."""
        if each.acts is None:
            batch, found = each.batch, {}
            acts = self.lm.run(batch.tokens_BT, read=sites, logits=None).acts
            for site in sites:
                rows = choose_rows(acts[site], batch.mask_BT)
                bounds = torch.stack(rows.aminmax())
                found[site] = rows.to(self._plan.dtype)
                check_finite(site, found[site], bounds, RowSource.of(batch, batch.mask_BT))
            each.acts = found
        return each.acts


@dataclass
class _Batch:
    """A batch of tokens, and where its rows are in the shard."""

    start: int
    batch: TokenBatch
    columns: dict[str, np.ndarray]
    acts: dict[Site, Tensor] | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.columns["tokens"])


class _Shard:
    """The rows that would be one shard of a store.

    Args:
        first: row of the store where it begins.
        batches: the rest of the corpus.
        shard_tokens: rows after which it ends.
        special_ids: tokens to mark.
    """

    def __init__(self, first: int, batches: Iterator[TokenBatch], shard_tokens: int, special_ids: Any) -> None:
        self.first, self.rows, self.last = first, 0, False
        self._batches, self._full, self._special_ids = batches, shard_tokens, special_ids
        self._kept: deque[_Batch] = deque()
        self._begins: list[np.ndarray] = []

    def blocks(self, batch_tokens: int, start: int) -> Iterator[range]:
        """The rows of each block from row `start` of the store on, counted from the beginning of the shard."""
        row = max(start - self.first, 0)
        while True:
            while self.rows < row + batch_tokens and self._read():
                pass
            if row >= self.rows:
                return
            begins = np.append(np.concatenate(self._begins), self.rows)
            stop = next_stop(begins, row, batch_tokens)
            yield range(row, stop)
            row = stop

    def batches_of(self, rows: range) -> list[_Batch]:
        """The batches that hold some rows. Earlier ones are dropped."""
        while self._kept[0].stop <= rows.start:
            self._kept.popleft()
        return [each for each in self._kept if each.start < rows.stop]

    def _read(self) -> bool:
        """Read another batch; returns whether there was one."""
        if self.last or self.rows >= self._full:
            return False
        batch = next(self._batches, None)
        if batch is None:
            self.last = True
            return False
        each = _Batch(self.rows, batch, token_columns(RowSource.of(batch, batch.mask_BT), self._special_ids))
        self._begins.append(self.rows + np.flatnonzero(each.columns["position"] == 0))
        self.rows = each.stop
        self._kept.append(each)
        return True
