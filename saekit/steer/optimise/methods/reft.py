"""LoReFT: Wu et al. 2024, "ReFT: Representation Finetuning for Language Models", arXiv 2404.03592.

h + R^T (W h + b - R h), where the r rows of R are orthonormal: the part of h in their span becomes W h + b. R is the orthogonal
factor of a trained (d, r) matrix (QR decomposition), so that its rows stay orthonormal exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.steer.optimise.activations import TrainedActivations
from saekit.steer.optimise.loop import TuneSettings
from saekit.steer.optimise.tuning import Problem, Tuned, tune_activations


def reft(problem: Problem, *, rank: int = 4) -> Tuned:
    """Train LoReFT at each of the problem's sites; without any, at resid_post of the middle layer. It starts without effect.

    Args:
        problem: what is tuned.
        rank: r.

    Raises:
        ConfigError: the rank is not from 1 to the width of a site, or a site has heads.
    """
    lm, seed = problem.lm, (problem.settings or TuneSettings()).seed
    sites = [lm.site(site) for site in problem.sites] or [Site("resid_post", lm.n_layers // 2)]
    generator = torch.Generator().manual_seed(seed)
    start = {}
    for site in sites:
        shape = lm.token_shape(site)
        if len(shape) != 1 or not 1 <= rank <= shape[0]:
            raise ConfigError(
                f"LoReFT of rank {rank} does not fit tokens of shape {shape} at {site}.", "Choose a flat site and a smaller rank."
            )
        basis_Dr = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator)).Q
        start[site] = {"basis": basis_Dr, "W": rows_of(basis_Dr), "b": torch.zeros(rank)}
    adjustment = TrainedActivations(lm, "loreft", start, problem.positions, _parameters)
    return tune_activations(problem, adjustment, "reft", rank=rank)


def rows_of(basis_Dr: Tensor) -> Tensor:
    """(r, D) with orthonormal rows that span the columns of a matrix."""
    return torch.linalg.qr(basis_Dr).Q.T


def _parameters(own: Mapping[str, Tensor], training: bool) -> dict[str, Tensor]:
    return {"R": rows_of(own["basis"]), "W": own["W"], "b": own["b"]}
