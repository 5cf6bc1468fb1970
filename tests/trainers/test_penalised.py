"""JumpReLU, Gated and standard SAEs: losses and gradients against the formulas of the papers, and the penalty weight."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.sae.code import Code
from tests.kit import dense
from tests.kit.runs import CONFIG, sparse_data
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState
from trainers.objectives.base import Now, Outcome
from trainers.objectives.penalty import Penalised

ARCHITECTURES = ("jumprelu", "gated", "standard")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("path", dense.PATHS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_gradients_are_those_of_dense_float64(arch: str, path: str, data: st.DataObject) -> None:
    B, D, F = data.draw(st.integers(2, 60)), data.draw(st.integers(2, 40)), data.draw(st.integers(2, 120))
    aux_k, seed, eps = data.draw(st.integers(1, F)), data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from([0.03, 0.8]))
    dead = torch.randperm(F, generator=torch.Generator().manual_seed(seed))[: data.draw(st.integers(0, F))].sort().values
    coefficient, log_weight = data.draw(st.sampled_from([0.0, 1 / 32, 2.0])), data.draw(st.sampled_from([-7.0, -2.0, 0.0]))
    config = dense.config(F, D, 1, arch, aux_k=aux_k, aux_coefficient=coefficient, bandwidth=eps)
    p = dense.random_parameters(F, D, seed, arch)
    x, weight = dense.clear(config, p, dense.data(seed + 1, B, D), dead), math.exp(log_weight)
    dense.check(path, config, p, x, dead, weight=weight, state={"log_weight": torch.tensor(log_weight)})


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("path", dense.PATHS)
def test_a_usual_size_with_a_given_weight(arch: str, path: str) -> None:
    F, D, dead = 300, 32, torch.arange(100, 160)
    p = dense.random_parameters(F, D, 3, arch)
    p.b_enc_F -= 0.7
    config = dense.config(F, D, 8, arch, aux_k=16, sparsity=0.3, sparsity_warmup=0.5, bandwidth=0.1)
    x = dense.clear(config, p, dense.data(1, 400, D), dead)
    for share, weight in ((0.25, 0.15), (0.75, 0.3)):
        gradient = dense.check(path, config, p, x, dead, weight=weight, share=share)
    assert all(tensor.abs().max() > 1e-6 for tensor in gradient.values())


def test_the_auxiliary_decoder_of_gated_is_frozen() -> None:
    """Without the main term, the decoder has no gradient: the reconstruction from the gates must not train it."""
    F, D = 40, 10
    p, x = dense.random_parameters(F, D, 0, "gated"), dense.data(0, 50, D)
    p.b_mag_F.fill_(-100.0)  # no magnitudes, so that only the terms of the gates remain
    config = dense.config(F, D, 4, "gated", aux_coefficient=0.0)
    for path in dense.PATHS:
        _, gradient = dense.ours(path, config, p, x, x, Now(0.5, torch.arange(0)), {})
        assert gradient.W_dec_FE.abs().max() == 0
        assert gradient.W_enc_FD.abs().max() > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_initial_l0_is_that_of_the_schedule(arch: str) -> None:
    F, D = 2048, 128
    config = dense.config(F, D, 16, arch)
    x = dense.data(5, 500, D)
    it = dense.made(config, D, variance=float(D))
    outcome, _ = it.gradient(it.start(), x, x, Now(0.0, torch.arange(0)))
    fired = float((outcome.code.values_N > 0).sum()) / len(x)
    assert fired == pytest.approx(config.k_start, rel=0.1)
    size = (outcome.code.decode(it.start().W_dec_FE) * x).sum(1) / x.square().sum(1)
    assert size.mean().item() == pytest.approx(1, rel=0.1)


def _observe(it: Penalised, l0: int, n: int, share: float) -> None:
    code = Code.of(torch.ones(n, l0), torch.zeros(n, l0, dtype=torch.int64))
    it.observe(Outcome(0.0, 0.0, code), Now(share, torch.arange(0)))


def test_the_weight_follows_l0_and_learns() -> None:
    it, late = dense.made(dense.config(1000, 16, 10, "jumprelu", tokens=100_000), 16), Now(0.5, torch.arange(0))
    assert isinstance(it, Penalised)
    start = it.penalty(late)
    _observe(it, 10, 100, 0.5)
    assert it.penalty(late) == pytest.approx(start)  # L0 equals its target
    _observe(it, 20, 100, 0.5)
    before = it.penalty(late)
    for _ in range(50):
        _observe(it, 20, 100, 0.5)
    assert it.penalty(late) / before == pytest.approx(math.exp(100 * 0.05 * 0.1), rel=1e-3)  # over a 20th of the run
    learnt = it.state["log_weight"].exp().item()
    assert it.penalty(late) == pytest.approx((1 + 20 * math.log(2)) * learnt, rel=1e-3)
    _observe(it, 0, 100, 0.5)
    assert it.penalty(late) == pytest.approx(-19 * it.state["log_weight"].exp().item(), rel=1e-3)
    for _ in range(100):
        _observe(it, 0, 100, 0.5)
    assert it.state["log_weight"].exp() < learnt


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("l0", "off"), [(2, 0.0), (8, 0.0), (4, 3.0), (4, -3.0)])
def test_l0_is_met_even_from_a_poor_initial_weight(arch: str, l0: int, off: float) -> None:
    x = sparse_data(100_000)
    config = dataclasses.replace(CONFIG, arch=arch, l0=l0, tokens=len(x), lr=3e-3).resolve(x.shape[1])
    training = TrainState(config, DataScaling.of(x[:1024], "mean"))
    training.objective.state["log_weight"] += off
    for x_BD in x.split(256):
        training.step(x_BD)
    code = training.sae().encode_dense(sparse_data(5_000, seed=1))
    assert float((code > 0).sum()) / len(code) == pytest.approx(l0, rel=0.1)


def test_the_target_falls_to_l0() -> None:
    it = dense.made(dense.config(1000, 16, 10, "jumprelu", tokens=10_000), 16)
    assert isinstance(it, Penalised)
    _observe(it, 40, 100, 0.0)
    early, late = (it.penalty(Now(share, torch.arange(0))) for share in (0.0, 0.2))
    assert late / early == pytest.approx(21)  # an L0 of 40 is the initial target, and above the later one
