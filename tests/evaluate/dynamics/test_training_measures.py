"""Measures of training against closed forms."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import ConfigError
from saekit.evaluate.dynamics.in_context import Phase, in_context_score, phase, prefix_score
from saekit.evaluate.dynamics.learning_coefficient import Sampler, learning_coefficient
from saekit.evaluate.dynamics.pathways import consistency, distance_between_tokens, edit_distance, pathways, router_entropy


def _quadratic(flat: int) -> tuple[list[torch.Tensor], float]:
    """The estimate on L = sum h_i (w_i - m_i)^2 / 2 with 10 dimensions, of which `flat` have h = 0."""
    h = torch.linspace(0.5, 2, 10, dtype=torch.float64)
    h[:flat] = 0
    middle = torch.arange(10, dtype=torch.float64)
    weight = middle.clone().requires_grad_()

    def loss(step: int = 0) -> torch.Tensor:
        return (h * (weight - middle) ** 2).sum() / 2

    sampler = Sampler(steps=2500, burn_in=300, chains=1, rate=2e-3, pull=0.0)
    found = learning_coefficient([weight], loss, loss, n=1000, sampler=sampler)
    return [weight.detach(), middle], sum(found) / len(found)


@pytest.mark.parametrize("flat", [0, 6])
def test_the_coefficient_of_a_quadratic_is_half_of_its_dimensions(flat: int) -> None:
    weights, found = _quadratic(flat)
    # The step size biases the variance of a dimension by 1 / (1 - eps n beta h / 4): up to 17 % for h = 2.
    assert (10 - flat) / 2 * 0.8 < found < (10 - flat) / 2 * 1.35
    assert torch.equal(*weights)


def test_a_coefficient_needs_examples() -> None:
    with pytest.raises(ConfigError, match="n = 1"):
        learning_coefficient([], lambda step: torch.tensor(0.0), lambda: torch.tensor(0.0), 1)
    with pytest.raises(ConfigError, match="positive rate"):
        Sampler(rate=0)


def test_a_copier_has_a_negative_in_context_score() -> None:
    tokens = torch.tensor([[0, 5, 7, 5, 7], [0, 2, 3, 2, 3]])
    logits = torch.zeros(2, 5, 9)
    for b in range(2):
        logits[b, 3, tokens[b, 4]] = 50.0
    assert abs(in_context_score(logits, tokens, 2, 4) + torch.log(torch.tensor(9.0)).item()) < 1e-6


def test_prefix_matching_by_hand() -> None:
    tokens = torch.tensor([[0, 5, 7, 5, 7]])
    pattern = torch.zeros(1, 2, 5, 5)
    pattern[0, 0, 3, 2] = 0.75  # the 5 at 3 looks at the token after the 5 at 1
    pattern[0, 0, 4, 3] = 0.25  # the 7 at 4 looks at the token after the 7 at 2
    pattern[0, 1, 3, 1] = 1.0
    assert prefix_score(pattern, tokens).tolist() == [0.5, 0.0]


def test_a_phase_has_a_begin_and_an_end() -> None:
    assert phase([0, 10, 20, 30], [4.0, 3.9, 2.0, 0.0]) == Phase(20, 20, 30)
    assert phase([0, 1], [1.0, 1.0]) is None


def test_pathways_by_hand() -> None:
    router = [torch.tensor([[3.0, 2, 1], [1, 2, 3]]), torch.tensor([[0.0, 9, 8], [0, 9, 8]])]
    paths = pathways(router, 2)
    assert paths == [((0, 1), (1, 2)), ((1, 2), (1, 2))]
    assert edit_distance(*paths) == 1 and edit_distance(((1,), (2,), (3,)), ((2,), (3,), (1,))) == 2
    assert consistency(paths, paths) == 1 and consistency(paths, paths[::-1]) == 0.5
    assert 0 < distance_between_tokens(paths) < 0.5
    even = router_entropy([torch.zeros(4, 8)])
    assert abs(even[0] - torch.log(torch.tensor(8.0)).item()) < 1e-6
