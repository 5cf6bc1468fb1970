"""ACDC: remove edges one by one, from the logits down, where the model hardly notices (Conmy et al. 2023, arXiv 2304.14997)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.circuits.ablation import EdgeAblator
from saekit.locate.circuits.circuit import Circuit
from saekit.progress import Bar, track

_AT_ONCE = 16
"""Removals that are tried in one batch."""


@dataclass(frozen=True)
class Pruning:
    """What ACDC found.

    Attributes:
        circuit: the edges that were kept.
        effects_UVSB: what the metric lost, on every prompt, when the edge was removed from the circuit of that moment.
        runs: number of circuits that were run.
    """

    circuit: Circuit
    effects_UVSB: Tensor
    runs: int

    def scored(self) -> Circuit:
        """The circuit, with the mean effects of its edges as their scores."""
        return replace(self.circuit, scores_UVS=self.effects_UVSB.mean(-1))


def prune(ablator: EdgeAblator, tau: float, *, progress: bool = True) -> Pruning:
    """Remove every edge whose removal lowers the mean metric by less than `tau`.

    Readers are taken in reverse topological order, and the writers of a reader from the latest to the earliest. An edge is judged
    with all edges removed that were removed before it, as in the paper. With the metric `kl` this is the rule of the paper:
    KL(model || circuit) may grow by less than tau.

    Several removals are tried in one batch, each with those before it in the batch; the results after the first edge that must
    stay are discarded. The outcome is that of trying them one by one.

    Raises:
        ConfigError: tau is negative or not a number.
    """
    if not tau >= 0:
        raise ConfigError(f"The threshold tau is {tau}.", "Give a number from 0.")
    wiring, spans = ablator.wiring, ablator.spans
    keep = Circuit.whole(wiring, spans).keep_UVS
    effects = torch.zeros(*keep.shape, len(ablator.task), dtype=torch.float64)
    current, runs, done = ablator.intact_B, 0, 0
    with track("pruning", wiring.n_edges * len(spans), unit="edges", enabled=progress) as bar:
        for v in reversed(range(len(wiring.readers))):
            writers = wiring.possible_UV[:, v].nonzero().flatten().tolist()[::-1]
            waiting = [(u, s) for u in writers for s in range(len(spans))]
            width = _AT_ONCE
            while waiting:
                batch = waiting[:width]
                values = ablator.values(_chain(keep, v, batch))
                runs += len(batch)
                judged = _judge(keep, effects, v, batch, torch.cat([current[None], values]), tau)
                current, removed = judged
                kept = removed < len(batch)
                waiting = waiting[removed + kept :]
                done += removed + kept
                # Where edges stay, long batches are wasted.
                width = max(1, width // 2) if kept else min(_AT_ONCE, width * 2)
                _show(bar, done, keep)
    return Pruning(Circuit(wiring, spans, keep), effects, runs)


def _chain(keep: Tensor, v: int, batch: list[tuple[int, int]]) -> Tensor:
    """(n, U, V, S): the circuit without the first edge, without the first two, ..."""
    chain = keep.expand(len(batch), *keep.shape).clone()
    for i, (u, s) in enumerate(batch):
        chain[i:, u, v, s] = False
    return chain


def _judge(keep: Tensor, effects: Tensor, v: int, batch: list[tuple[int, int]], values: Tensor, tau: float) -> tuple[Tensor, int]:
    """Remove the edges of a batch until one must stay; the metric of the circuit then, and how many were removed."""
    for i, (u, s) in enumerate(batch):
        effects[u, v, s] = values[i] - values[i + 1]
        if not float(effects[u, v, s].mean()) < tau:
            return values[i], i
        keep[u, v, s] = False
    return values[-1], len(batch)


def _show(bar: Bar, done: int, keep: Tensor) -> None:
    bar.update(done, note=f"{int(keep.sum()):,} kept")
