"""Dense formulas of the papers for autograd in float64: the oracle of every loss and every sparse step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import reject
from torch import Tensor

from trainers import TrainConfig
from trainers.loop.data_scaling import DataScaling
from trainers.objectives.base import Now, Objective, objective
from trainers.step.parameters import Parameters

PATHS = ("torch", "sparse", "sparse, screened")
VARIANCE = 3.0
Loss = Callable[[Parameters, Tensor, Tensor], Tensor]


def data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_parameters(F: int, D: int, seed: int = 0, arch: str = "topk", E: int | None = None) -> Parameters:
    """Unit decoder rows (any norm for a transcoder), an encoder near their transpose, and non-zero biases."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(F, D, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    W_enc = W_dec + 0.3 * torch.randn(F, D, generator=generator) / D**0.5
    b_enc, b_dec, one, two = (0.1 * torch.randn(n, generator=generator) for n in (F, E or D, F, F))
    if E:
        W_dec = torch.randn(F, E, generator=generator) / E**0.5
    p = Parameters(W_enc_FD=W_enc, b_enc_F=b_enc, W_dec_FE=W_dec, b_dec_E=b_dec)
    if arch == "jumprelu":
        p.log_threshold_F = 10 * one - 1
    if arch == "gated":
        p.b_mag_F, p.r_mag_F = 3 * one, 3 * two
    if arch == "standard":
        p.W_dec_FE = W_dec * 10 * one[:, None]
    return p


def config(F: int, D: int, k: int, arch: str = "topk", **settings: object) -> TrainConfig:
    """A configuration with those of `settings` that the architecture reads, so that one list serves all architectures."""
    return TrainConfig.recorded({"n_latents": F, "arch": arch, "l0": k} | settings).resolve(D)


def made(config: TrainConfig, D: int, E: int | None = None, variance: float = VARIANCE) -> Objective:
    """The objective for data in the units of training. With `E`, that of a transcoder from D to E."""
    reads, writes = (DataScaling(1.0, torch.zeros(width), variance, torch.zeros(width)) for width in (D, E or D))
    return objective(config, dataclasses.replace(reads, mean_D=middle(D)) if E else reads, writes if E else reads)


def middle(D: int) -> Tensor:
    """The mean of the inputs of transcoders."""
    return torch.linspace(-0.4, 0.3, D)


# Losses, each with the formula of its paper


class Jump(torch.autograd.Function):
    """JumpReLU with the estimator of arXiv 2407.14435, equation 11."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.eps = eps
        return h * (h > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        h, theta = ctx.saved_tensors
        rect = (((h - theta) / ctx.eps).abs() < 0.5) & (h > 0)
        return grad * (h > theta), (-(theta / ctx.eps) * rect * grad).sum(0), None


class _Step(torch.autograd.Function):
    """The Heaviside step, equation 12."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.eps = eps
        return (h > theta).to(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        h, theta = ctx.saved_tensors
        rect = (((h - theta) / ctx.eps).abs() < 0.5) & (h > 0)
        return None, (-(1 / ctx.eps) * rect * grad).sum(0), None


def pre(p: Parameters, x: Tensor) -> Tensor:
    """Pre-activations. Transcoders (here: those whose two widths differ) do not subtract a bias from their input."""
    centred = x - p.b_dec_E if x.shape[1] == len(p.b_dec_E) else x
    return centred @ p.W_enc_FD.T + p.b_enc_F


def fvu(p: Parameters, f: Tensor, y: Tensor) -> Tensor:
    return (f @ p.W_dec_FE + p.b_dec_E - y).square().sum(1).mean() / VARIANCE


def topk(h: Tensor, k: int) -> Tensor:
    return torch.relu(h) * torch.zeros_like(h).scatter(1, h.topk(k, dim=1).indices, 1)


def abstopk(h: Tensor, k: int) -> Tensor:
    return h * torch.zeros_like(h).scatter(1, h.abs().topk(k, dim=1).indices, 1)


def batchtopk(h: Tensor, k: int) -> Tensor:
    keep = torch.zeros_like(h).flatten().scatter(0, h.flatten().topk(k * len(h)).indices, 1)
    return torch.relu(h) * keep.view_as(h)


def auxk(p: Parameters, h: Tensor, f: Tensor, y: Tensor, dead: Tensor, config: TrainConfig) -> Tensor:
    """The AuxK loss, 0 if no latent is dead."""
    error = (y - f @ p.W_dec_FE - p.b_dec_E).detach()
    is_dead = torch.zeros(h.shape[1], dtype=torch.bool)
    is_dead[dead] = True
    assert config.aux_k is not None
    k = min(config.aux_k, len(dead))
    if config.arch == "abstopk":
        kept = abstopk(h * is_dead, k) if k else torch.zeros_like(h)
    else:
        kept = topk(h.masked_fill(~is_dead, -torch.inf), k) if k else torch.zeros_like(h)
    error_hat = torch.where(is_dead, kept, 0) @ p.W_dec_FE
    spread = (error - error.mean(0)).square().sum()
    return config.aux_coefficient * (error_hat - error).square().sum() / spread if k else h.sum() * 0


def centring(p: Parameters) -> Tensor | float:
    """The term that centres the pre-activations of transcoders, which do not subtract a bias from their input; else 0."""
    D = p.W_enc_FD.shape[1]
    return 0.0 if len(p.b_dec_E) == D else -p.W_enc_FD.detach() @ middle(D).to(p.W_enc_FD)


def lifted(config: TrainConfig, h: Tensor, p: Parameters, centring: Tensor | float) -> Tensor:
    """The pre-activations for AuxK. Gated and standard SAEs leave out the bias, but keep its gradient."""
    return h - p.b_enc_F.detach() + centring if config.arch in ("gated", "standard") else h


def coded(config: TrainConfig, weight: float, p: Parameters, h: Tensor) -> tuple[Tensor, Tensor | float]:
    """The code of pre-activations, and the sparsity penalty."""
    if config.arch == "topk":
        return topk(h, config.l0), 0.0
    if config.arch == "abstopk":
        return abstopk(h, config.l0), 0.0
    if config.arch in ("batchtopk", "matryoshka"):
        return batchtopk(h, config.l0), 0.0
    if config.arch == "jumprelu":
        theta, eps = p.log_threshold_F.exp(), config.bandwidth
        l0 = _Step.apply(torch.relu(h), theta, eps).sum(1).mean()
        return Jump.apply(torch.relu(h), theta, eps), weight * l0
    if config.arch == "standard":
        f = torch.relu(h)
        return f, weight * (f * p.W_dec_FE.norm(dim=1)).sum(1).mean() / VARIANCE**0.5
    assert config.arch == "gated"  # h holds the pre-activations of the gates, pi
    f = (h > 0) * torch.relu(p.r_mag_F.exp() * (h - p.b_enc_F) + p.b_mag_F)
    return f, weight * torch.relu(h).sum(1).mean() / VARIANCE**0.5


def level_ends(config: TrainConfig) -> list[int]:
    """Latents in each level of Matryoshka."""
    ends = [round(sum(config.groups[: i + 1]) * config.n_latents) for i in range(len(config.groups))]
    return sorted({max(1, end) for end in ends})


def reconstruction(config: TrainConfig, p: Parameters, f: Tensor, y: Tensor) -> Tensor:
    """The FVU, or its mean over the levels of Matryoshka."""
    if config.arch != "matryoshka":
        return fvu(p, f, y)
    levels = [fvu(p, torch.where(torch.arange(f.shape[1]) < end, f, 0), y) for end in level_ends(config)]
    return torch.stack(levels).mean()


def loss_of(config: TrainConfig, dead: Tensor, weight: float = 0.0) -> Loss:
    """The loss of an architecture. `weight` is the weight of its sparsity penalty."""

    def loss(p: Parameters, x: Tensor, y: Tensor) -> Tensor:
        y = y - x @ p.W_skip_ED.T if config.skip else y
        h = pre(p, x)
        f, more = coded(config, weight, p, h)
        if config.arch == "gated":
            frozen = Parameters(W_dec_FE=p.W_dec_FE.detach(), b_dec_E=p.b_dec_E.detach())
            more = more + fvu(frozen, torch.relu(h), y.detach())
        return reconstruction(config, p, f, y) + more + auxk(p, lifted(config, h, p, centring(p)), f, y, dead, config)

    return loss


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
    """Loss and dense gradient of a path of saekit."""
    it = made(
        dataclasses.replace(
            config,
            screen="screened" in path if path.startswith("sparse") else None,
            backend="triton" if path == "triton" else config.backend,
        ),
        x.shape[1],
        y.shape[1] if y is not x else None,
    )
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
    p: Parameters,
    x: Tensor,
    dead: Tensor,
    *,
    y: Tensor | None = None,
    weight: float = 0.0,
    share: float = 0.5,
    state: dict[str, Tensor] | None = None,
) -> Parameters:
    """Check that a path of saekit has the loss and the gradient of the formula. Returns the gradient."""
    y = x if y is None else y
    value, found = ours(path, config, p, x, y, Now(share, dead), state or {})
    expected_value, expected = gradient(loss_of(config, dead, weight), p, x, y)
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = tensor.abs().max().item() + 1e-12
        torch.testing.assert_close(found[name].double(), tensor, atol=2e-5 * scale, rtol=1e-4, msg=name)
    return expected


def gap(h: Tensor, k: int) -> Tensor:
    """The difference between the k-th and the next entry of each row."""
    if not 0 < k < h.shape[1]:
        return torch.ones(len(h))
    ordered = h.sort(1, descending=True).values
    return ordered[:, k - 1] - ordered[:, k]


def clear(config: TrainConfig, p: Parameters, x: Tensor, dead: Tensor) -> Tensor:
    """Rows of x whose signs, selections and windows do not depend on float32 rounding. Few such rows reject the example."""
    assert config.aux_k is not None
    p = p.map(Tensor.double)
    h = pre(p, x.double())
    lift = lifted(config, h, p, centring(p))
    if config.arch == "abstopk":
        h = lift = h.abs()
    rows = (gap(lift[:, dead], min(config.aux_k, len(dead))) > 1e-5) & (torch.minimum(h.abs(), lift.abs()).min(1).values > 1e-6)
    if config.arch in ("topk", "abstopk"):
        rows &= gap(h, config.l0) > 1e-5
    if config.arch == "jumprelu":
        for edge in (-config.bandwidth / 2, 0, config.bandwidth / 2):
            rows &= ((h - p.log_threshold_F.exp() - edge).abs() > 1e-5).all(1)
    if config.arch == "gated":
        rows &= (((h - p.b_enc_F) * p.r_mag_F.exp() + p.b_mag_F).abs() > 1e-5).all(1)
    x = x[rows]
    across_tokens = config.arch in ("batchtopk", "matryoshka")
    if len(x) < 2 or (across_tokens and gap(h[rows].view(1, -1), config.l0 * len(x)).item() < 1e-5):  # AuxK divides by a variance
        reject()
    return x
