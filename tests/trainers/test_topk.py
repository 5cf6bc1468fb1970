"""TopK, AbsTopK and AuxK: losses and gradients of the torch step and of the sparse CPU step against dense float64 autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit import dense
from trainers import TrainConfig
from trainers.objectives.base import Now
from trainers.step.adam import Adam
from trainers.step.optimizer import Optimizer
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


def _gradient(config: TrainConfig, p: Parameters, x: Tensor, dead: Tensor) -> SparseGradient:
    return dense.made(config, x.shape[1]).gradient(p, x, x, Now(0.5, dead))[1]


def _check(path: str, config: TrainConfig, p: Parameters, x: Tensor, dead: Tensor) -> None:
    dense.check(path, config, p, dense.clear(config, p, x, dead), dead)


@pytest.mark.parametrize("arch", ["topk", "abstopk"])
@pytest.mark.parametrize("path", dense.PATHS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_gradients_are_those_of_dense_float64(arch: str, path: str, data: st.DataObject) -> None:
    B, D, F = data.draw(st.integers(2, 70)), data.draw(st.integers(2, 40)), data.draw(st.integers(2, 150))
    k, seed = data.draw(st.integers(1, F)), data.draw(st.integers(0, 10**6))
    n_dead = data.draw(st.integers(0, F))
    dead = torch.randperm(F, generator=torch.Generator().manual_seed(seed))[:n_dead].sort().values
    config = dense.config(
        F, D, k, arch, aux_k=data.draw(st.integers(1, F)), aux_coefficient=data.draw(st.sampled_from([0.0, 1 / 32, 2.0]))
    )
    _check(path, config, dense.random_parameters(F, D, seed), dense.data(seed + 1, B, D), dead)


@pytest.mark.parametrize("path", dense.PATHS)
@pytest.mark.parametrize("n_dead", [3, 200])  # fewer and more than aux_k
def test_auxk_reaches_encoder_and_decoder_of_dead_latents(path: str, n_dead: int) -> None:
    F, D = 400, 48
    p = dense.random_parameters(F, D)
    dead = torch.arange(50, 50 + n_dead)
    p.b_enc_F[dead] = -3.0  # never in the top k of a token, but sometimes positive without the bias
    x = 2 * dense.data(1, 300, D)
    with_aux, without = (dense.config(F, D, 8, aux_coefficient=c) for c in (1 / 32, 0.0))
    _check(path, with_aux, p, x, dead)
    total, base = (dense.ours(path, config, p, x, x, Now(0.5, dead), {})[1] for config in (with_aux, without))
    added = {name: total[name] - base[name] for name in total}
    W_enc, b_enc, W_dec, b_dec = (added[name] for name in ("W_enc_FD", "b_enc_F", "W_dec_FE", "b_dec_E"))
    alive = torch.ones(F, dtype=torch.bool)
    alive[dead] = False
    for gradient in (W_enc, b_enc[:, None], W_dec):
        assert gradient[dead].abs().max() > 1e-6
        assert gradient[alive].abs().max() == 0
    assert b_dec.abs().max() > 0  # only through the input of the encoder, since e_hat has no bias
    torch.testing.assert_close(b_dec, -(b_enc @ p.W_enc_FD), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("path", dense.PATHS)
def test_rows_with_fewer_positive_latents_than_k(path: str) -> None:
    F, D, k = 60, 20, 30
    p = dense.random_parameters(F, D, 3)
    p.b_enc_F -= 1.0
    x = dense.data(2, 101, D)
    x[7] = p.b_dec_E  # no latent is positive on this row
    assert ((torch.relu((x - p.b_dec_E) @ p.W_enc_FD.T + p.b_enc_F) > 0).sum(1) < k).any()
    _check(path, dense.config(F, D, k), p, x, torch.arange(5))


@pytest.mark.parametrize("path", dense.PATHS)
def test_auxk_of_a_perfect_reconstruction_is_zero_and_not_nan(path: str) -> None:
    F, D = 30, 10
    p = dense.random_parameters(F, D, 4)
    x = p.b_dec_E.repeat(16, 1)
    p.b_enc_F.zero_()
    loss, gradient = dense.ours(path, dense.config(F, D, 3), p, x, x, Now(0.5, torch.arange(12)), {})
    assert loss == 0
    assert all(tensor.isfinite().all() for tensor in gradient.values())


@pytest.mark.parametrize("D", [5, 24, 77])
def test_results_do_not_depend_on_memory_addresses(D: int) -> None:
    """Compilers choose another loop for arrays that are adjacent in memory. All loops must round alike."""
    B, F, k = 40, 30, 7
    p, x, config = dense.random_parameters(F, D, 7), dense.data(8, B, D), dense.config(F, D, k)
    generator = torch.Generator().manual_seed(9)
    results = []
    for _ in range(60):
        arena, end = torch.empty(200_000), 0

        def place(tensor: Tensor, arena: Tensor = arena) -> Tensor:
            nonlocal end
            start = end + int(torch.randint(40, (1,), generator=generator))
            end = start + tensor.numel()
            return arena[start:end].view_as(tensor).copy_(tensor)

        names = list(torch.randperm(4, generator=generator))
        mine = p.map(torch.clone)
        adam = Adam.start(mine, config)
        groups = [mine, adam.mean, adam.square]
        placed = {int(i): groups[int(i)].map(place) for i in names if i < 3}
        mine, adam.mean, adam.square = (placed[i] for i in range(3))
        gradient = _gradient(config, mine, place(x), torch.arange(10))
        gradient.errors = [place(error) for error in gradient.errors]
        gradient.x_BD = place(gradient.x_BD)
        Optimizer(mine, adam, True).step(gradient, 1e-3)
        results.append(torch.cat([tensor.flatten() for group in (mine, adam.mean, adam.square) for tensor in group.values()]))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("centres", [True, False])
@pytest.mark.parametrize("unit_rows", [True, False])
def test_sparse_adam_step_is_the_dense_one(centres: bool, unit_rows: bool) -> None:
    F, D, k = 333, 40, 7
    config = dense.config(F, D, k, aux_coefficient=1.0)
    ours = dense.random_parameters(F, D, 5)
    theirs = ours.map(lambda tensor: tensor.double())
    optimizer = torch.optim.Adam(list(theirs.values()), lr=1e-2, betas=(0.9, 0.999), eps=6.25e-10)
    adam, dead = Adam.start(ours, config), torch.arange(100)
    for step in range(5):
        x = dense.data(step, 257, D)
        gradient = _gradient(config, ours, x, dead)
        gradient.centres = centres
        full = gradient.dense(ours).map(lambda tensor: tensor.double())
        if unit_rows:
            full.W_dec_FE -= (full.W_dec_FE * theirs.W_dec_FE).sum(1, keepdim=True) * theirs.W_dec_FE
        for tensor, grad in zip(theirs.values(), full.values()):
            tensor.grad = grad
        optimizer.step()
        if unit_rows:
            theirs.W_dec_FE /= theirs.W_dec_FE.norm(dim=1, keepdim=True)
        Optimizer(ours, adam, unit_rows).step(gradient, 1e-2)
        for name, tensor in theirs.items():
            close = (ours[name] - tensor).abs() < 1e-4
            assert close.double().mean() > 0.999, (
                name,
                step,
            )  # if a gradient is only rounding error, the sign of Adam's step is random
            ours[name].copy_(tensor)


def test_both_adams_agree_and_rows_stay_unit() -> None:
    F, D = 200, 32
    config = dense.config(F, D, 5)
    one, two = dense.random_parameters(F, D, 6), dense.random_parameters(F, D, 6)
    adam_one, adam_two = Adam.start(one, config), Adam.start(two, config)
    for step in range(20):
        gradient = _gradient(config, one, dense.data(step, 100, D), torch.arange(0))
        Optimizer(two, adam_two, True).step(gradient.dense(one), 1e-3)
        Optimizer(one, adam_one, True).step(gradient, 1e-3)
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=2e-6, rtol=1e-4, msg=name)
            two[name].copy_(tensor)
    torch.testing.assert_close(one.W_dec_FE.norm(dim=1), torch.ones(F), atol=1e-6, rtol=0)
