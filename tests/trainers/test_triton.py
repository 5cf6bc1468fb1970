"""The sparse step with Triton kernels, against dense float64 and numba. Without a GPU, it runs in the interpreter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit import dense
from tests.kit.runs import CONFIG, ROWS, D, F, sparse_data, train_run

pytest.importorskip("triton", reason="needs triton")

from saekit.errors import ConfigError
from saekit.sae.kernels import encode_above, gpu, runs_triton
from trainers import TrainConfig
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState
from trainers.objectives.base import Now
from trainers.step.adam import Adam
from trainers.step.optimizer import Optimizer

if not runs_triton("cpu"):
    pytest.skip("the kernels are compiled; TRITON_INTERPRET=1 runs them in the interpreter", allow_module_level=True)


@pytest.mark.parametrize("arch", ROWS)
@settings(max_examples=4, deadline=None)  # the interpreter needs a millisecond for every program of a grid
@given(st.data())
def test_gradients_are_those_of_dense_float64(arch: str, data: st.DataObject) -> None:
    B, D, F = data.draw(st.integers(6, 20)), data.draw(st.integers(2, 20)), data.draw(st.integers(4, 40))
    k, seed = data.draw(st.integers(1, F // 2)), data.draw(st.integers(0, 10**6))
    dead = torch.randperm(F, generator=torch.Generator().manual_seed(seed))[: data.draw(st.integers(0, F))].sort().values
    config = dense.config(F, D, k, arch, aux_k=data.draw(st.integers(1, F)), bandwidth=0.5)
    penalised = {"sparsity": 0.3, "sparsity_warmup": 0.0} if arch in ("jumprelu", "gated", "standard") else {}
    config = dataclasses.replace(config, **penalised)
    p = dense.random_parameters(F, D, seed, arch)
    weight = 0.3 if penalised else 0.0
    dense.check("triton", config, p, dense.clear(config, p, dense.data(seed + 1, B, D), dead), dead, weight=weight)


@pytest.mark.parametrize("arch", ["topk", "jumprelu"])
def test_gradients_of_a_transcoder(arch: str) -> None:
    B, D, E, F = 12, 7, 9, 30
    config = dense.config(F, D, 4, arch, skip=True, bandwidth=0.5)
    p = dense.random_parameters(F, D, 3, arch, E)
    p.W_skip_ED = 0.2 * dense.data(4, E, D)
    x, y, dead = dense.data(5, B, D), dense.data(6, B, E), torch.arange(0, F, 3)
    now = Now(0.5, dead)
    found, expected = (dense.ours(path, config, p, x, y, now, {}) for path in ("triton", "torch"))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, tensor in expected[1].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("arch", ROWS)
def test_steps_are_those_of_the_dense_gradient(arch: str) -> None:
    """Gradients with several terms and several rows per token, for decoder rows with and without unit norm."""
    B, D, F = 20, 9, 30
    config = dense.config(F, D, 5, arch, backend="triton", bandwidth=0.5)
    it = dense.made(config, D)
    p, dead = dense.random_parameters(F, D, 5, arch), torch.arange(0, F, 4)
    adam, mine = Adam.start(p, config), p.map(torch.clone)
    exact = Adam.start(mine, config)
    for step in range(2):
        _, gradient = it.gradient(p, *(2 * [dense.data(step, B, D)]), Now(0.5, dead))
        assert gradient.kernels == "triton"
        Optimizer(mine, exact, it.unit_rows).step(gradient.dense(p), 1e-2)
        Optimizer(p, adam, it.unit_rows).step(gradient, 1e-2)
        for name, tensor in mine.items():
            # If a gradient is only rounding error, its sign is random, and so is Adam's first step.
            sure = exact.square[name].sqrt() > 1e-6 * exact.square[name].max().sqrt() + 1e-12
            torch.testing.assert_close(p[name][sure], tensor[sure], atol=2e-5, rtol=1e-4, msg=f"{name} after step {step}")
            p[name].copy_(tensor)
            adam.mean[name].copy_(exact.mean[name])
            adam.square[name].copy_(exact.square[name])


def test_a_run_is_that_of_numba(tmp_path: Path) -> None:
    x = sparse_data(600)
    config = dataclasses.replace(CONFIG, tokens=600, batch_size=100, sample_tokens=300, n_latents=24, dead_tokens=150)
    runs = {
        kernels: train_run(tmp_path / kernels, dataclasses.replace(config, backend=kernels), x) for kernels in ("numba", "triton")
    }
    for name, tensor in runs["numba"].state_dict().items():
        torch.testing.assert_close(runs["triton"].state_dict()[name], tensor, atol=1e-3, rtol=1e-2, msg=name)


def test_unsupported_combinations_are_refused() -> None:
    facts = DataScaling(1.0, torch.zeros(D), 1.0, torch.zeros(D))
    for changes, words in (
        ({"backend": "triton", "dtype": "float64"}, "backend='triton' cannot train float64 on cpu"),
        ({"backend": "numba", "device": "cuda"}, "backend='numba' cannot train float32 on cuda"),
    ):
        with pytest.raises(ConfigError, match=words):
            TrainState(dataclasses.replace(CONFIG.resolve(D), **changes), facts)


def test_kernels_are_chosen_by_device() -> None:
    config = TrainConfig(n_latents=F, device="cpu")
    assert config.kernels == "numba"
    assert dataclasses.replace(config, dtype="float64").kernels == "torch"
    assert dataclasses.replace(config, device="cuda").kernels == "triton"
    assert dataclasses.replace(config, device="cuda", backend="torch").kernels == "torch"
    assert dataclasses.replace(config, backend="triton").kernels == "triton"


def test_entries_above_a_floor_and_their_gradient() -> None:
    x, W, b = (dense.data(i, *shape).requires_grad_() for i, shape in enumerate([(7, 5), (12, 5), (12,)]))
    floor = 0.5 * dense.data(9, 12)
    gpu_side, torch_side = (encode_above(x, W, b, floor, backend=backend) for backend in ("triton", "torch"))
    assert len(gpu_side[0]) > 10
    for one, other in zip(gpu_side, torch_side):
        torch.testing.assert_close(one, other)
    upstream = dense.data(10, len(gpu_side[0]))

    def gradients(values: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(values, [x, W, b], upstream)

    for one, other in zip(gradients(gpu_side[0]), gradients(torch_side[0])):
        torch.testing.assert_close(one, other)
    assert type(gpu_side[0].grad_fn).__name__ != type(torch_side[0].grad_fn).__name__
    assert gpu.obstacle(x) is None
