"""JoLA, joint localization and activation editing: Lai et al. 2025, arXiv 2502.01179.

(1 + g2 A) * z + g1 v at the output z of each head, with a gate g1 of the shift v and a gate g2 of the scaling A. Gates are
HardConcrete variables (Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv 1712.01312). In
training

    s = sigmoid((log u - log(1 - u) + log_alpha) / tau),  g = clamp(s (zeta - gamma) + gamma, 0, 1),  u uniform on (0, 1),

and afterwards g = clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1). The loss has the expected number of open gates,
sum sigmoid(log_alpha - tau log(-gamma / zeta)), so that the heads that are not needed close.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log

import torch
from torch import Tensor

from saekit.errors import UnsupportedModel
from saekit.steer.optimise.activations import TrainedActivations
from saekit.steer.optimise.loop import TuneSettings
from saekit.steer.optimise.tuning import Problem, Tuned, tune_activations

GAMMA, ZETA, TAU = -0.1, 1.1, 0.33
_OPEN = 2.0
"""log_alpha at the start: gates at 0.96."""


def jola(problem: Problem, *, l0: float = 0.001) -> Tuned:
    """Train gates, scalings and shifts of the heads of the problem's sites; without any, of all layers.

    Args:
        problem: what is tuned.
        l0: what an open gate adds to the loss, in nats.

    Raises:
        UnsupportedModel: no layer has heads.
    """
    lm, seed = problem.lm, (problem.settings or TuneSettings()).seed
    sites = [lm.site(site) for site in problem.sites] or [site for site in lm.sites() if site.kind == "heads"]
    if not sites or any(site.kind != "heads" for site in sites):
        raise UnsupportedModel(f"JoLA changes the outputs of heads; {lm.name} is given {', '.join(map(str, sites)) or 'none'}.")
    start = {}
    for site in sites:
        H, d = lm.token_shape(site)
        gates = {name: torch.full((H,), _OPEN) for name in ("log_alpha_1", "log_alpha_2")}
        start[site] = {"A": torch.zeros(H, d), "v": torch.zeros(H, d), **gates}
    adjustment = TrainedActivations(lm, "jola", start, problem.positions, _parameters(seed), lambda every: l0 * open_gates(every))
    return tune_activations(problem, adjustment, "jola", l0=l0)


def gate(log_alpha_H: Tensor, u_H: Tensor | None) -> Tensor:
    """(H,) gates from 0 to 1: random where uniform numbers `u_H` are given, else those after training."""
    s_H = log_alpha_H.sigmoid() if u_H is None else ((u_H.log() - (-u_H).log1p() + log_alpha_H) / TAU).sigmoid()
    return (s_H * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_gates(every: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The expected number of gates that are not 0 in training."""
    shift = TAU * log(-GAMMA / ZETA)
    return torch.stack([(own[f"log_alpha_{n}"] - shift).sigmoid().sum() for own in every for n in (1, 2)]).sum()


def _parameters(seed: int) -> Callable[[Mapping[str, Tensor], bool], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def made(own: Mapping[str, Tensor], training: bool) -> dict[str, Tensor]:
        gates = {}
        for n in (1, 2):
            alpha_H = own[f"log_alpha_{n}"]
            u_H = torch.rand(len(alpha_H), generator=generator).clamp(1e-6, 1 - 1e-6).to(alpha_H) if training else None
            gates[f"g{n}"] = gate(alpha_H, u_H)
        return {"A": own["A"], "v": own["v"], **gates}

    return made
