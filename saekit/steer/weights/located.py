"""Layers to edit, from objects that a locating method ranked."""

from __future__ import annotations

from saekit.errors import ConfigError
from saekit.names.ref import Ref
from saekit.tasks import Ranking

_SITES = ("neurons", "mlp_out")


def ranked_layers(ranking: Ranking, n: int = 1) -> list[int]:
    """The `n` layers whose MLPs a ranking finds most in, in the order of the model; fewer where it finds something in fewer.

    A layer counts with the sum of the positive scores of its neurons and of its MLP's output, at whatever positions (as causal
    tracing ranks it with restore="mlp"). Other objects do not count.

    Raises:
        ConfigError: no object of an MLP has a positive score, or `n` is below 1.
    """
    if n < 1:
        raise ConfigError(f"{n} layers cannot be taken.", "Give at least 1.")
    sums: dict[int, float] = {}
    for name, score in ranking.items():
        if not isinstance(name, Ref) or name.kind not in ("neuron", "site") or name.site is None or name.layer is None:
            continue
        if name.site.kind in _SITES and score > 0:
            sums[name.layer] = sums.get(name.layer, 0.0) + score
    if not sums:
        raise ConfigError(
            "The ranking has no object of an MLP with a positive score.",
            'Rank neurons, or trace with restore="mlp"; or give layers.',
        )
    return sorted(sorted(sums, key=lambda layer: (-sums[layer], layer))[:n])
