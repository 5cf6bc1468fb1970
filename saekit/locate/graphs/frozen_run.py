"""Interventions in the frozen model: change what enters the residual stream, and keep patterns, scales and MLP outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.lm.run.edits import At, Edit
from saekit.locate.graphs.freezing import Frozen, RowsDoNotFit
from saekit.locate.graphs.replacement import Replacement
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Deltas = Mapping[Site, Tensor]
"""By site where sources enter, what is added there in each variant: (B, T, d)."""


@dataclass
class FrozenModel:
    """A model on one prompt, with everything that is not linear held at the values of an unchanged pass.

    Attributes:
        lm: the model.
        replacement: the replacement model, whose skip connections stay live.
        tokens_1T: the prompt.
        tape: the frozen patterns and scales.
        static: by site where sources enter, the (T, d) that they add up to.
    """

    lm: LanguageModel
    replacement: Replacement
    tokens_1T: Tensor
    tape: list[Tensor]
    static: dict[Site, Tensor]
    _rows: int = 0

    @torch.no_grad()
    def values(self, start: Mapping[Site, Tensor], deltas: Deltas, rows: int) -> tuple[dict[Site, Tensor], Tensor]:
        """What arrives at the sites that dictionaries read, (B, T, d), and logits before any cap, (B, V), at the last token.

        Args:
            start: what sources add up to before the change.
            deltas: the change of each of the `rows` variants.
            rows: B.
        """
        reads, skips = self.replacement.reads, self.replacement.skips
        arrived: dict[Site, Tensor] = {}

        def keep(site: Site) -> Callable[[Tensor, At], Tensor]:
            def fn(x: Tensor, at: At) -> Tensor:
                arrived[site] = x
                return x

            return fn

        def put(site: Site) -> Callable[[Tensor, At], Tensor]:
            def fn(x: Tensor, at: At) -> Tensor:
                new = start[site].to(x)[at.position_N]
                if site in deltas:
                    new = new + deltas[site].to(x)[at.batch_N, at.position_N]
                if site in skips:
                    before, skip = skips[site]
                    new = new + skip(arrived[before])
                return new

            return fn

        end = Site("resid_post", self.lm.n_layers - 1)
        edits = [Edit(site, keep(site), order=1) for site in {*reads, end}]
        edits += [Edit(site, put(site)) for site in start]
        with Frozen(self.tape):
            self.lm.run(self.tokens_1T.expand(rows, -1), edits=edits, logits=None, stop_after=end)
            logits_BV = self.lm.readout.uncapped(arrived[end].unflatten(0, (rows, -1))[:, -1])
        return {site: arrived[site].flatten(1).unflatten(0, (rows, -1)) for site in reads}, logits_BV.float()

    def constants(self) -> tuple[dict[Site, Tensor], Tensor]:
        """The values where every source is zero: what biases alone make."""
        b_dec = self.replacement.constants(self.static)
        zero = {site: each.new_zeros(each.shape) for site, each in self.static.items()}
        return self.values({site: zero[site] + b_dec.get(site, 0.0) for site in zero}, {}, 1)

    def changed(self, deltas: Iterator[tuple[int, Deltas]]) -> Iterator[tuple[dict[Site, Tensor], Tensor]]:
        """The values after each of several sets of changes, given as (rows, deltas)."""
        for rows, some in deltas:
            try:
                yield self.values(self.static, some, rows)
            except RowsDoNotFit:  # this model folds rows into another axis
                each = [self.values(self.static, {site: x[n : n + 1] for site, x in some.items()}, 1) for n in range(rows)]
                yield {site: torch.cat([acts[site] for acts, _ in each]) for site in each[0][0]}, torch.cat([x for _, x in each])
