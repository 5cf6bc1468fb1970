"""Trained vectors: h + v at one site, or after every block ("bias-only" tuning).

One vector: Subramani et al. 2022, "Extracting Latent Steering Vectors from Pretrained Language Models", arXiv 2205.05124. A
vector after every block: Sinii et al. 2025, "Steering LLM Reasoning Through Bias-Only Adaptation", arXiv 2505.18706.
"""

from __future__ import annotations

import torch

from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.steer.optimise.activations import TrainedActivations
from saekit.steer.optimise.tuning import Problem, Tuned, tune_activations


def vector(problem: Problem) -> Tuned:
    """Train one vector at the problem's site.

    Raises:
        ConfigError: there is not exactly one site.
    """
    if len(problem.sites) != 1:
        raise ConfigError(f"The method vector trains a vector at one site; {len(problem.sites)} are given.", "Name one site.")
    return _train(problem, [problem.lm.site(problem.sites[0])], "vector")


def bias(problem: Problem) -> Tuned:
    """Train a vector at each of the problem's sites; without any, at resid_post of every layer."""
    lm = problem.lm
    sites = [lm.site(site) for site in problem.sites] or [Site("resid_post", layer) for layer in range(lm.n_layers)]
    return _train(problem, sites, "bias")


def _train(problem: Problem, sites: list[Site], method: str) -> Tuned:
    start = {site: {"v": torch.zeros(problem.lm.token_shape(site))} for site in sites}
    return tune_activations(problem, TrainedActivations(problem.lm, "vector", start, problem.positions), method)
