"""A metric of changed runs, from the logits of the tokens that it reads alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.tasks import Metric, values_of

if TYPE_CHECKING:
    from saekit.lm.run.planner import Planner

_NUMBERS = 1 << 24
"""Logits that are computed at once."""


class Measure:
    """A metric of a planner's prompts.

    A metric that reads one token of a prompt costs one row of logits for each variant. A callable is called with the logits
    (B, T, V) of all prompts, in which those of the variants take the place of the unchanged ones.
    """

    def __init__(self, planner: Planner, metric: Metric | Callable[[Tensor], Any]) -> None:
        self._planner, self._metric = planner, metric
        self._narrow = isinstance(metric, Metric) and metric.reach is not None

    @cached_property
    def intact_B(self) -> Tensor:
        """(B,) float64 of the unchanged run."""
        planner = self._planner
        B = len(planner.lengths)
        if not self._narrow:
            return self._double(values_of(self._metric, planner.logits_BTV), B)
        rows = list(range(B))
        return self._narrowed(rows, planner._unembedded(self._columns(rows)))

    def of_rows(self, rows: Sequence[int], resid_nTD: Tensor) -> Tensor:
        """(n,) float64 of changed runs of some rows, from the output of the last block."""
        width = self._columns(rows[:1]).shape[1] if self._narrow else resid_nTD.shape[1]
        step = max(1, _NUMBERS // (width * self._planner.lm.vocab_size))
        parts = [slice(start, start + step) for start in range(0, len(rows), step)]
        return torch.cat([self._part(rows[part], resid_nTD[part]) for part in parts])

    def _part(self, rows: Sequence[int], resid_nTD: Tensor) -> Tensor:
        lm = self._planner.lm
        if self._narrow:
            columns = self._columns(rows).to(resid_nTD.device)
            index = torch.arange(len(rows), device=resid_nTD.device)[:, None]
            return self._narrowed(rows, lm.unembed(resid_nTD[index, columns]))
        logits_nTV = lm.unembed(resid_nTD)
        if isinstance(self._metric, Metric):
            return self._metric.of_prompts(rows).per_prompt(logits_nTV).double().cpu()
        return self._called(rows, logits_nTV)

    def _called(self, rows: Sequence[int], logits_nTV: Tensor) -> Tensor:
        """A callable may know its prompts by their row, so that each variant stands in the row of its prompt."""
        intact_BTV = self._planner.logits_BTV
        out = torch.zeros(len(rows), dtype=torch.float64)
        waiting = list(range(len(rows)))
        one_number = values_of(self._metric, intact_BTV).numel() == 1 < len(intact_BTV)
        while waiting:
            chosen: dict[int, int] = {}
            for i in waiting:
                if rows[i] not in chosen and not (one_number and chosen):
                    chosen[rows[i]] = i
            logits_BTV = intact_BTV.index_copy(
                0, torch.tensor([*chosen], device=intact_BTV.device), logits_nTV[[*chosen.values()]]
            )
            found = self._double(values_of(self._metric, logits_BTV), len(intact_BTV))
            for row, i in chosen.items():
                out[i] = found[row]
            done = set(chosen.values())
            waiting = [i for i in waiting if i not in done]
        return out

    def _columns(self, rows: Sequence[int]) -> Tensor:
        """(n, k) the columns that the metric reads."""
        metric, lengths = self._metric, self._planner.lengths
        assert isinstance(metric, Metric)
        first = [metric.positions[row] if metric.positions else lengths[row] - 1 for row in rows]
        k = max((len(metric.rows[row]) for row in range(len(metric.rows))), default=1)
        last = self._planner.tokens_BT.shape[1] - 1
        return (torch.tensor(first)[:, None] + torch.arange(k)).clamp(max=last)

    def _narrowed(self, rows: Sequence[int], logits_nkV: Tensor) -> Tensor:
        metric = self._metric
        assert isinstance(metric, Metric)
        chosen = metric.of_prompts(rows)
        reference = chosen.reference
        if reference is not None:
            reference = chosen.at_positions(reference)[:, None].expand(-1, logits_nkV.shape[1], -1)
        chosen = replace(chosen, positions=(0,) * len(rows), reference=reference)
        return chosen.per_prompt(logits_nkV).double().cpu()

    @staticmethod
    def _double(values: Tensor, B: int) -> Tensor:
        return values.double().cpu().expand(B) if values.numel() == 1 else values.double().cpu()
