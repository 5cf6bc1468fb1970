"""Smaller circuits: edges of a circuit that are scarcely missed are removed, as their ablation within the circuit says."""

from __future__ import annotations

from dataclasses import replace

import torch

from saekit.errors import ConfigError
from saekit.locate.circuits.ablation import EdgeAblator
from saekit.locate.circuits.circuit import Circuit, each_removed
from saekit.progress import track


def refine(ablator: EdgeAblator, circuit: Circuit, n: int, *, shrink: float = 0.8, progress: bool = True) -> Circuit:
    """A circuit of at most `n` edges, from a larger one.

    Gradient scores judge edges in the whole model. Here each edge is ablated within the circuit, those that the metric misses
    least are removed, and what is left is judged again. The cost is one run for each edge and round.

    Args:
        ablator: runs the circuits.
        circuit: the larger circuit.
        n: number of edges to keep.
        shrink: share of the edges that a round keeps, at least.
        progress: whether to show progress.

    Raises:
        ConfigError: `n` is negative, or `shrink` is not between 0 and 1.
    """
    if n < 0 or not 0 < shrink < 1:
        raise ConfigError(f"A circuit cannot be refined to {n} edges by a factor of {shrink}.", "Give n >= 0 and 0 < shrink < 1.")
    start = len(circuit)
    with track("refining", max(0, start - n), unit="edges", enabled=progress) as bar:
        while len(circuit) > n:
            missed = ablator.intact_B.mean() - ablator.values(each_removed(circuit)).mean(1)
            kept = missed.argsort(descending=True, stable=True)[: max(n, min(len(circuit) - 1, int(shrink * len(circuit))))]
            keep = torch.zeros_like(circuit.keep_UVS)
            keep[tuple(circuit.places[kept].T)] = True
            circuit = replace(circuit, keep_UVS=keep).pruned()
            bar.update(start - len(circuit), note=f"{len(circuit):,} left")
    return circuit
