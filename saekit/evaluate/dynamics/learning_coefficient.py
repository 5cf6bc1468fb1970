"""The local learning coefficient of a minimum of a loss, by stochastic gradient Langevin dynamics (SGLD).

Source: Lau et al. 2023, "The Local Learning Coefficient" (arXiv 2308.12108), eqs. 9 and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from saekit.errors import ConfigError, NonFiniteActivations


@dataclass(frozen=True)
class Sampler:
    """How the posterior around a minimum is sampled.

    Attributes:
        steps: of each chain, after the burn-in.
        burn_in: steps that are thrown away.
        chains: chains, each from the minimum.
        rate: step size epsilon.
        pull: strength gamma of the pull back to the minimum.
        seed: of the noise.

    Raises:
        ConfigError: a number is out of range.
    """

    steps: int = 200
    burn_in: int = 100
    chains: int = 2
    rate: float = 1e-4
    pull: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.chains < 1 or self.burn_in < 0 or self.rate <= 0 or self.pull < 0:
            raise ConfigError("SGLD needs steps and chains of at least 1, and a positive rate.", "Give other numbers.")


def learning_coefficient(
    weights: Sequence[Tensor], loss: Callable[[int], Tensor], full: Callable[[], Tensor], n: int, sampler: Sampler | None = None
) -> list[float]:
    """(chains,) estimates n beta (E_SGLD[L_n(w)] - L_n(w*)), beta = 1 / log n. On a quadratic loss without a pull: d / 2.

    A step: w <- w - eps / 2 (n beta dL(w) + gamma (w - w*)) + N(0, eps). The weights are the same afterwards, bit for bit.

    Args:
        weights: parameters that require gradients, at the minimum w*.
        loss: (step) -> the mean loss of a batch of that step, with its graph.
        full: () -> the mean loss L_n over all n examples, at the weights as they are.
        n: number of examples.
        sampler: steps, rate and pull.

    Raises:
        ConfigError: n is below 2.
        NonFiniteActivations: a loss is not finite: the rate is too large.
    """
    if n < 2:
        raise ConfigError(f"beta = 1 / log n has no value for n = {n}.", "Give at least 2 examples.")
    sampler = sampler or Sampler()
    scale = n / log(n)
    centre = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(sampler.seed)
    found = []
    try:
        with torch.no_grad():
            start = float(full())
        for _ in range(sampler.chains):
            _restore(weights, centre)
            total = 0.0
            for step in range(sampler.burn_in + sampler.steps):
                with torch.enable_grad():
                    value = loss(step)
                    grads = torch.autograd.grad(value, list(weights))
                with torch.no_grad():
                    for weight, w0, grad in zip(weights, centre, grads):
                        drift = scale * grad + sampler.pull * (weight - w0)
                        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
                        weight += -0.5 * sampler.rate * drift + sampler.rate**0.5 * noise
                    if step >= sampler.burn_in:
                        total += float(full())
            found.append(scale * (total / sampler.steps - start))
    finally:
        _restore(weights, centre)
    if not all(abs(each) < float("inf") for each in found):
        raise NonFiniteActivations("A loss of SGLD is not finite.", "Give a smaller rate.")
    return found


@torch.no_grad()
def _restore(weights: Sequence[Tensor], centre: Sequence[Tensor]) -> None:
    for weight, w0 in zip(weights, centre):
        weight.copy_(w0)
