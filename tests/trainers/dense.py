"""The formulas of the papers written down densely, for autograd in float64: the oracle of every loss and every sparse step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import reject
from torch import Tensor

from trainers import TrainConfig
from trainers.objectives import Now, Objective, objective
from trainers.parameters import Parameters
from trainers.statistics import Statistics

PATHS = ("torch", "sparse", "sparse, screened")
VARIANCE = 3.0
Loss = Callable[[Parameters, Tensor, Tensor], Tensor]


def data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_parameters(F: int, D: int, seed: int = 0) -> Parameters:
    """Unit decoder rows and an encoder that is not quite their transpose, all biases in use."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(F, D, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    W_enc = W_dec + 0.3 * torch.randn(F, D, generator=generator) / D**0.5
    b_enc, b_dec = (0.1 * torch.randn(n, generator=generator) for n in (F, D))
    return Parameters(W_enc_FD=W_enc, b_enc_F=b_enc, W_dec_FE=W_dec, b_dec_E=b_dec)


def config(F: int, D: int, k: int, arch: str = "topk", **settings: object) -> TrainConfig:
    return TrainConfig(n_latents=F, arch=arch, l0=k, **settings).resolve(D)  # type: ignore[arg-type]


def made(config: TrainConfig, D: int, variance: float = VARIANCE) -> Objective:
    """The objective, for data in the units of training."""
    facts = Statistics(1.0, torch.zeros(D), variance)
    return objective(config, facts, facts)


# Losses, each as its paper has it


def pre(p: Parameters, x: Tensor) -> Tensor:
    return (x - p.b_dec_E) @ p.W_enc_FD.T + p.b_enc_F


def fvu(p: Parameters, f: Tensor, y: Tensor) -> Tensor:
    return (f @ p.W_dec_FE + p.b_dec_E - y).square().sum(1).mean() / VARIANCE


def topk(p: Parameters, h: Tensor, k: int) -> Tensor:
    return torch.relu(h) * torch.zeros_like(h).scatter(1, h.topk(k, dim=1).indices, 1)


def batchtopk(p: Parameters, h: Tensor, k: int) -> Tensor:
    keep = torch.zeros_like(h).flatten().scatter(0, h.flatten().topk(k * len(h)).indices, 1)
    return torch.relu(h) * keep.view_as(h)


def auxk(p: Parameters, h: Tensor, f: Tensor, y: Tensor, dead: Tensor, aux_k: int, coefficient: float) -> Tensor:
    """Zero where nothing is dead."""
    error = (y - f @ p.W_dec_FE - p.b_dec_E).detach()
    is_dead = torch.zeros(h.shape[1], dtype=torch.bool)
    is_dead[dead] = True
    k = min(aux_k, len(dead))
    kept = topk(p, h.masked_fill(~is_dead, -torch.inf), k) if k else torch.zeros_like(h)
    error_hat = torch.where(is_dead, kept, 0) @ p.W_dec_FE
    return coefficient * (error_hat - error).square().sum() / (error - error.mean(0)).square().sum() if k else h.sum() * 0


# Comparison


def gradient(loss: Loss, p: Parameters, x: Tensor, y: Tensor) -> tuple[float, Parameters]:
    """A loss and its float64 gradient."""
    leaves = p.map(lambda tensor: tensor.detach().double().requires_grad_())
    value = loss(leaves, x.double(), y.double())
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.item(), Parameters(zip(leaves, grads))


def ours(
    path: str, config: TrainConfig, p: Parameters, x: Tensor, y: Tensor, now: Now, state: dict[str, Tensor]
) -> tuple[float, Parameters]:
    """Loss and full gradient on one of our paths."""
    it = made(dataclasses.replace(config, screen=None if path == "torch" else "screened" in path), x.shape[1])
    for name, tensor in state.items():
        it.state[name].copy_(tensor)
    if path != "torch":
        outcome, sparse = it.gradient(p, x, y, now)
        return float(outcome.loss), sparse.dense(p)
    leaves = p.map(lambda tensor: tensor.detach().requires_grad_())
    outcome = it.loss(leaves, x, y, now)
    assert isinstance(outcome.loss, Tensor)
    assert not outcome.code.values_N.requires_grad
    grads = torch.autograd.grad(outcome.loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return outcome.loss.item(), Parameters(zip(leaves, grads))


def check(
    path: str,
    config: TrainConfig,
    loss: Loss,
    p: Parameters,
    x: Tensor,
    dead: Tensor,
    *,
    y: Tensor | None = None,
    share: float = 0.5,
    state: dict[str, Tensor] | None = None,
) -> Parameters:
    """One of our paths has the loss and the gradient of the formula; returns the latter."""
    y = x if y is None else y
    value, found = ours(path, config, p, x, y, Now(share, dead), state or {})
    expected_value, expected = gradient(loss, p, x, y)
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = tensor.abs().max().item() + 1e-12
        torch.testing.assert_close(found[name].double(), tensor, atol=2e-5 * scale, rtol=1e-4, msg=name)
    return expected


def gap(h: Tensor, k: int) -> Tensor:
    """How far apart the k-th and the next entry of each row are."""
    if not 0 < k < h.shape[1]:
        return torch.ones(len(h))
    ordered = h.sort(1, descending=True).values
    return ordered[:, k - 1] - ordered[:, k]


def clear_rows(p: Parameters, x: Tensor, dead: Tensor, aux_k: int, k: int | None = None) -> Tensor:
    """The rows of x whose signs and selections (AuxK's, and the k largest if given) float32 rounding cannot change."""
    h = pre(p.map(Tensor.double), x.double())
    clear = (gap(h[:, dead], min(aux_k, len(dead))) > 1e-5) & (h.abs().min(1).values > 1e-6)
    if k is not None:
        clear &= gap(h, k) > 1e-5
    x = x[clear]
    if len(x) < 2:  # AuxK needs a variance
        reject()
    return x
