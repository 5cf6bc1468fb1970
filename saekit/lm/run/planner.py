"""The planner: runs many variants of prompts, each with its own replacements, in few batches that share what they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.run.changes import Prepared, Replace, Variant, prepare
from saekit.lm.run.forward import RunnableModel
from saekit.lm.run.measuring import Measure
from saekit.lm.run.progressive import run_batch
from saekit.lm.run.shared_prefix import by_first_column, first_column
from saekit.lm.run.unchanged import Unchanged
from saekit.names.site import Site
from saekit.progress import track
from saekit.tasks import Metric

__all__ = ["Planner", "Replace", "Variant"]

_CHUNK = 4096
"""Variants that are prepared at once, so that memory does not grow with their number."""
_PAYS = 4
"""Passes over the prompts that the keys and values of a prefix must save: they cost three."""


class Planner:
    """Runs variants of prompts: object x replacement x prompt. B prompts of T tokens.

    Variants are sorted by the first block that they change and run together, one variant a row. A variant joins its batch at
    that block, with the recorded input of the block; blocks before it are not run. Replacements that set what is there already
    are left out, and a variant without any other is not run at all. Columns before the first one that a variant changes are not
    run either: their keys and values are computed once for each prompt. Logits are computed only where they are needed.

    All tokens are moved so that pads are on the right: column c of a row is its position c, counted without pads.

    Memory: a batch takes at most `memory` bytes for activations and logits, whatever the number of variants. Besides that, the
    planner keeps the inputs, keys and values of all blocks and the activations that have been read, (B, T, width) each.
    :attr:`rows_at_once` is the number of rows of a batch.

    Attributes:
        lm: the model.
        lengths: number of real tokens of each row.
        tokens_BT: the tokens, with pads on the right.
    """

    def __init__(self, lm: RunnableModel, tokens_BT: Any, attention_mask: Tensor | None = None, memory: int = 1 << 30) -> None:
        """Args:
        lm: the model.
        tokens_BT: token ids.
        attention_mask: (B, T), 1 at real tokens; pads may be on the left or right. None if there are no pads.
        memory: bytes that one batch may take.

        Raises:
            ConfigError: tokens and mask do not fit, or `memory` is too small for a single row.
        """
        self.lm, self.memory = lm, memory
        self._base = Unchanged(lm, tokens_BT, attention_mask)
        self.lengths, self.tokens_BT = self._base.lengths, self._base.tokens_BT
        self._logits_BTV: Tensor | None = None
        self._logits_BV: Tensor | None = None
        if self.rows_at_once < 1:
            raise ConfigError(
                f"A prompt of {self.tokens_BT.shape[1]} tokens takes {self.bytes_per_row:,} bytes; the budget is {memory:,}.",
                "Give a larger memory, or shorter prompts.",
            )

    @property
    def bytes_per_row(self) -> int:
        """About what one row of a batch takes: the largest set of activations of a block that is held at once, and logits."""
        lm, T = self.lm, self.tokens_BT.shape[1]
        wide = max(1, lm.n_heads) * max(1, lm.d_head)
        numbers = T * (8 * lm.d_model + 4 * lm.d_ffn + 6 * wide + 2 * max(1, lm.n_heads) * T) + 4 * lm.vocab_size
        return int(numbers) * max(4, lm.dtype.itemsize)

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch that fit the budget."""
        return self.memory // self.bytes_per_row

    @property
    def logits_BV(self) -> Tensor:
        """(B, V) of the unchanged run, at the last real token of each row."""
        if self._logits_BV is None:
            last = torch.tensor([[length - 1] for length in self.lengths])
            self._logits_BV = self._unembedded(last)[:, 0]
        return self._logits_BV

    @property
    def logits_BTV(self) -> Tensor:
        """(B, T, V) of the unchanged run. Columns after a row's last real token say nothing."""
        if self._logits_BTV is None:
            T = self.tokens_BT.shape[1]
            self._logits_BTV = self._unembedded(torch.arange(T).expand(len(self.tokens_BT), T))
        return self._logits_BTV

    @torch.no_grad()
    def _unembedded(self, columns_BC: Tensor) -> Tensor:
        end = self.act(Site("resid_post", self.lm.n_layers - 1))
        index = torch.arange(len(end), device=end.device)[:, None]
        return self.lm.unembed(end[index, columns_BC.to(end.device)])

    def act(self, site: Site | str) -> Tensor:
        """(B, T, *shape of one token) of the unchanged run, or (B, heads, T, T) at a pattern; read once and kept.

        Columns are counted without pads, and those after the last real token say nothing.
        """
        return self._base.act(self.lm.site(site))

    def metric(self, metric: Metric | Callable[[Tensor], Any]) -> Tensor:
        """(B,) float64 of the unchanged run."""
        return Measure(self, metric).intact_B

    @torch.no_grad()
    def effects(self, variants: Iterable[Variant], metric: Metric | Callable[[Tensor], Any], *, progress: bool = False) -> Tensor:
        """(N,) float64: the metric of each variant's row when its replacements hold.

        Args:
            variants: N of them. They are taken a few thousand at a time, so an iterator keeps memory flat.
            metric: a metric of the B prompts, or a callable that takes logits (B, T, V) and returns (B,) numbers, or one.
            progress: show a bar.

        Raises:
            ConfigError: a variant names a row, position or value that does not fit, or the metric is of other prompts.
            UnknownRef: a unit does not exist.
        """
        measure = Measure(self, metric)
        found: list[Tensor] = []
        total = len(variants) if isinstance(variants, Sequence) else None
        with track("running variants", total, unit="variants", enabled=progress) as bar:
            for chunk in self._chunks(variants, _CHUNK):
                out = torch.tensor([float(measure.intact_B[each.row]) for each in chunk], dtype=torch.float64)
                for batch, resid_nTD in self._batches(chunk):
                    out[[each.number for each in batch]] = measure.of_rows([each.row for each in batch], resid_nTD)
                found.append(out)
                bar.update(sum(map(len, found)))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def logits(self, variants: Iterable[Variant]) -> Iterator[tuple[slice, Tensor]]:
        """Yield a slice of the variants and their logits (n, V) at the last real token, in the order given."""
        step = max(1, min(_CHUNK, self.memory // (16 * self.lm.vocab_size)))
        start = 0
        for chunk in self._chunks(variants, step):
            out = self.logits_BV[[each.row for each in chunk]].clone()
            for batch, resid_nTD in self._batches(chunk):
                last = torch.tensor([self.lengths[each.row] - 1 for each in batch], device=resid_nTD.device)
                rows = resid_nTD[torch.arange(len(batch), device=resid_nTD.device), last]
                out[[each.number for each in batch]] = self.lm.unembed(rows).to(out)
            yield slice(start, start + len(chunk)), out
            start += len(chunk)

    def _chunks(self, variants: Iterable[Variant], size: int) -> Iterator[list[Variant]]:
        chunk: list[Variant] = []
        for number, each in enumerate(variants):
            if not 0 <= each.row < len(self.lengths):
                raise ConfigError(f"Variant {number} is of row {each.row}.", f"Rows are 0 to {len(self.lengths) - 1}.")
            chunk.append(each)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _batches(self, chunk: Sequence[Variant]) -> Iterator[tuple[list[Prepared], Tensor]]:
        """Batches of the variants that change something, with what the last block returns: (n, T, d_model)."""
        spaces = [each.space for variant in chunk for each in variant.replaced]
        self._base.read([site for space in spaces for site in (space.site, space.site_out)])
        prepared = [prepare(self._base, number, variant) for number, variant in enumerate(chunk)]
        changing = sorted((each for each in prepared if each.steps), key=lambda each: (each.layer, each.number))
        for first, group in self._groups(changing):
            group.sort(key=lambda each: (each.layer, each.number))
            for start in range(0, len(group), self.rows_at_once):
                batch = group[start : start + self.rows_at_once]
                yield batch, run_batch(self._base, batch, first)

    def _groups(self, changing: list[Prepared]) -> list[tuple[int, list[Prepared]]]:
        """Variants by the first column that they change, where keeping the keys and values of the columns before it pays."""
        saved = sum(map(first_column, changing))
        if saved <= _PAYS * self.tokens_BT.numel() or not self._base.keys_and_values.usable:
            return [(0, changing)]
        return by_first_column(changing, self.tokens_BT.shape[1])
