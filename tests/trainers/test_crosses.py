"""Crosscoders and cross-layer transcoders: losses and gradients per site, planted features, resuming, two models."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.sae import CrossCoder
from saekit.sae.metrics import reconstruction
from tests.kit import dense
from tests.kit.memory import Memory
from tests.kit.runs import Breaks, files, rows
from trainers import TrainConfig, train
from trainers.loop.data_scaling import DataScaling
from trainers.objectives.base import Now, Objective, objective
from trainers.step.parameters import Parameters

CASES = [("crosscoder", arch) for arch in ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "standard")]
CASES += [("clt", arch) for arch in ("topk", "batchtopk", "jumprelu", "gated", "standard")]
CASES += [("crosscoder", "tanh"), ("clt", "tanh")]  # JumpReLU with the tanh penalty
L, F = 3, 24
READS = {"crosscoder": (5, 9, 2), "clt": (6, 6, 6)}
WRITES = {"crosscoder": (5, 9, 2), "clt": (4, 7, 5)}


class _JumpForAll(dense.Jump):
    """JumpReLU whose step also has a derivative in the pre-activation (Anthropic, January 2025)."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        h, theta = ctx.saved_tensors
        near = theta / ctx.eps * ((((h - theta) / ctx.eps).abs() < 0.5) & (h > 0))
        return grad * ((h > theta) + near), -(near * grad).sum(0), None


def _sides(kind: str) -> tuple[DataScaling, DataScaling]:
    """Scalings of data in the units of training, with the widths of the case."""
    reads, writes = (
        DataScaling.joined([DataScaling(1.0, torch.zeros(w), dense.VARIANCE / L, torch.zeros(w)) for w in widths[kind]])
        for widths in (READS, WRITES)
    )
    return reads, reads if kind == "crosscoder" else writes


def _parameters(kind: str, arch: str, seed: int) -> Parameters:
    E, D = sum(WRITES[kind]), sum(READS[kind])
    p = dense.random_parameters(F, D, seed, arch, E)
    if kind == "clt":
        p.W_enc_FD = dense.data(seed + 9, F, D // L) / (D // L) ** 0.5
        for layer in range(L):
            p.W_dec_FE[layer * F // L : (layer + 1) * F // L, : sum(WRITES[kind][:layer])] = 0
    elif arch in ("jumprelu", "gated"):
        p.W_dec_FE /= p.W_dec_FE.norm(dim=1, keepdim=True)
    return p


def _pre(kind: str, p: Parameters, x: Tensor) -> Tensor:
    if kind == "clt":
        layers = zip(x.split(READS[kind], 1), p.W_enc_FD.split(F // L))
        return torch.cat([x_l @ W_l.T for x_l, W_l in layers], 1) + p.b_enc_F
    sites = zip(x.split(READS[kind], 1), p.W_enc_FD.split(READS[kind], 1))
    return sum((x_s @ W_s.T for x_s, W_s in sites), p.b_enc_F)


def _ranks(kind: str, p: Parameters, h: Tensor) -> Tensor:
    """The scores by which TopK, BatchTopK and Matryoshka select latents."""
    if kind == "clt":
        return h
    return h * sum(W_s.detach().norm(dim=1) for W_s in p.W_dec_FE.split(WRITES[kind], 1))


def _chosen(arch: str, ranks: Tensor, k: int) -> Tensor:
    pick = dense.topk if arch == "topk" else dense.batchtopk
    return pick(ranks, k) > 0


def _predicted(kind: str, p: Parameters, f: Tensor) -> Tensor:
    """Predictions of all sites, concatenated. Each is a sum over the latents that may write to the site."""
    first, parts = 0, []
    for j, width in enumerate(WRITES[kind]):
        until = (j + 1) * F // L if kind == "clt" else F
        block = slice(first, first + width)
        parts.append(f[:, :until] @ p.W_dec_FE[:until, block] + p.b_dec_E[block])
        first += width
    return torch.cat(parts, 1)


def _reference(kind: str, config: TrainConfig, dead: Tensor, weight: float) -> dense.Loss:
    def fvu(p: Parameters, f: Tensor, y: Tensor) -> Tensor:
        errors = zip(_predicted(kind, p, f).split(WRITES[kind], 1), y.split(WRITES[kind], 1))
        return sum((y_hat - own).square().sum(1).mean() for y_hat, own in errors) / dense.VARIANCE

    def loss(p: Parameters, x: Tensor, y: Tensor) -> Tensor:
        h, eps = _pre(kind, p, x), config.bandwidth
        arch = "tanh" if config.penalty == "tanh" else config.arch
        blocks = p.W_dec_FE.split(WRITES[kind] if kind == "crosscoder" else p.W_dec_FE.shape[1], 1)
        size = sum(block.norm(dim=1) for block in blocks)
        more: Tensor | float = 0.0
        if arch in ("topk", "batchtopk", "matryoshka"):
            f = h * _chosen(arch, _ranks(kind, p, h).detach(), config.l0)
        elif arch == "jumprelu":
            theta = p.log_threshold_F.exp()
            f = dense.Jump.apply(torch.relu(h), theta, eps)
            more = weight * dense._Step.apply(torch.relu(h), theta, eps).sum(1).mean()
        elif arch == "tanh":
            f = _JumpForAll.apply(torch.relu(h), p.log_threshold_F.exp(), eps)
            more = weight * torch.tanh(4 * f * size).sum(1).mean()
        elif arch == "standard":
            f = torch.relu(h)
            more = weight * (f * size).sum(1).mean() / dense.VARIANCE**0.5
        else:
            f = (h > 0) * torch.relu(p.r_mag_F.exp() * (h - p.b_enc_F) + p.b_mag_F)
            frozen = Parameters(W_dec_FE=p.W_dec_FE.detach(), b_dec_E=p.b_dec_E.detach())
            more = weight * torch.relu(h).sum(1).mean() / dense.VARIANCE**0.5 + fvu(frozen, torch.relu(h), y)
        main = fvu(p, f, y)
        if arch == "matryoshka":
            ends = sorted({max(1, round(sum(config.groups[: i + 1]) * F)) for i in range(len(config.groups))})
            main = torch.stack([fvu(p, torch.where(torch.arange(F) < end, f, 0), y) for end in ends]).mean()
        may = torch.ones_like(p.W_dec_FE)
        if kind == "clt":
            for layer in range(L):
                may[layer * F // L : (layer + 1) * F // L, : sum(WRITES[kind][:layer])] = 0
        reads, _ = _sides(kind)
        middle = (reads.mean_D if kind == "clt" else reads.centre_D).double()
        lift = dense.lifted(config, h, p, p.b_enc_F.detach() - _pre(kind, p.map(Tensor.detach), middle[None]))
        return main + more + dense.auxk(Parameters(p, W_dec_FE=p.W_dec_FE * may), lift, f, y, dead, config)

    return loss


def _made(kind: str, config: TrainConfig, state: dict[str, Tensor]) -> Objective:
    it = objective(config, *_sides(kind))
    for name, tensor in state.items():
        it.state[name].copy_(tensor)
    return it


@pytest.mark.parametrize(("kind", "arch"), CASES)
@pytest.mark.parametrize("path", ["torch", "sparse"])
def test_losses_and_gradients_are_those_of_dense_float64_site_by_site(kind: str, arch: str, path: str) -> None:
    for seed, k, dead_share in ((0, 3, 0.0), (1, 5, 0.3), (2, 1, 0.6)):
        jumps: dict[str, Any] = {"jumprelu": {"penalty": "count"}, "tanh": {"penalty": "tanh"}}.get(arch, {})
        named = "jumprelu" if jumps else arch
        config = dense.config(F, sum(READS[kind]), k, named, aux_k=4, aux_coefficient=2.0, bandwidth=0.3, **jumps)
        dead = torch.arange(F)[torch.rand(F, generator=torch.Generator().manual_seed(seed)) < dead_share]
        p = _parameters(kind, named, seed)
        x = dense.data(seed + 1, 40, sum(READS[kind]))
        y = x if kind == "crosscoder" else dense.data(seed + 2, 40, sum(WRITES[kind]))
        state = {"log_weight": torch.tensor(-1.0)} if named in ("jumprelu", "gated", "standard") else {}
        it = _made(kind, config, state)
        expected_value, expected = dense.gradient(_reference(kind, config, dead, math.exp(-1)), p, x, y)
        if path == "torch":
            leaves = p.map(lambda tensor: tensor.detach().requires_grad_())
            outcome = it.loss(it.written(leaves), x, y, Now(0.5, dead))
            grads = torch.autograd.grad(outcome.loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            value, found = outcome.loss.item(), Parameters(zip(leaves, grads))
        else:
            outcome, sparse = it.gradient(p, x, y, Now(0.5, dead))
            value, found = outcome.loss, sparse.dense(p)
        assert value == pytest.approx(expected_value, rel=1e-5)
        for name, tensor in expected.items():
            scale = tensor.abs().max().item() + 1e-12
            torch.testing.assert_close(found[name].double(), tensor, atol=2e-5 * scale, rtol=1e-4, msg=f"{name} {seed}")


def test_the_reference_distinguishes_layers() -> None:
    """The reference has zero gradients exactly where a latent may not write."""
    config = dense.config(F, 18, 3, "batchtopk", aux_k=4)
    p, x, y = _parameters("clt", "batchtopk", 0), dense.data(1, 40, 18), dense.data(2, 40, 16)
    _, expected = dense.gradient(_reference("clt", config, torch.arange(0), 0.0), p, x, y)
    assert expected.W_dec_FE[2 * F // L :, :11].abs().max() == 0 < expected.W_dec_FE[: F // L, 11:].abs().max()


# Whole runs

A, B = Site("resid_post", 1), Site("resid_post", 1, "other")
D = 12


def _two_models(n: int, seed: int = 0) -> dict[Site, Tensor]:
    """Two models with 10 shared latents and 5 own latents each. Their scales differ, and their means are not zero."""
    directions = torch.Generator().manual_seed(99)
    of_A, of_B = (torch.nn.functional.normalize(torch.randn(20, D, generator=directions), dim=1) for _ in range(2))
    of_A[15:], of_B[10:15] = 0, 0  # 0 to 9 are shared, 10 to 14 belong to A, 15 to 19 to B
    generator = torch.Generator().manual_seed(seed)
    strength = (torch.rand(n, 20, generator=generator) < 0.1) * (1 + torch.rand(n, 20, generator=generator))
    return {A: 0.1 * (strength @ of_A + 0.3), B: 50 * (strength @ of_B - 0.3)}


CONFIG = TrainConfig(n_latents=40, l0=2, arch="batchtopk", tokens=120_000, batch_size=256, lr=5e-3, dead_tokens=10_000)


def _train(out: Path, source: Memory, route: str = f"{A}+{B}", config: TrainConfig = CONFIG, **settings: Any) -> CrossCoder:
    sae = train(source, dataclasses.replace(config, **settings), out, site=route, progress=False)
    assert isinstance(sae, CrossCoder)
    return sae


@pytest.mark.parametrize("arch", ["batchtopk", "standard"])
def test_shared_and_model_specific_latents_are_found(tmp_path: Path, arch: str) -> None:
    cross = _train(tmp_path, Memory(_two_models(30_000), 256), arch=arch)
    assert cross.cfg.architecture == ("crosscoder" if arch == "standard" else "jumprelu_crosscoder")
    fresh = _two_models(4_000, seed=3)
    quality = reconstruction(cross, [fresh])
    decoded = cross.decode_sites(cross.encode(fresh))
    for site, x in fresh.items():
        fvu = (decoded[site] - x).double().square().sum() / (x - x.mean(0)).double().square().sum()
        assert quality[f"fvu/{site}"] == pytest.approx(float(fvu), rel=1e-3)
        assert fvu < (0.7 if arch == "standard" else 0.35)  # an L1 penalty shrinks what fires
    assert quality["l0"] == pytest.approx(2, rel=0.15)

    # For each planted direction, the latent with the most similar firing pattern.
    generator = torch.Generator().manual_seed(3)
    fires = torch.rand(4_000, 20, generator=generator) < 0.1
    code = cross.encode_dense(cross.side_by_side(fresh)) > 0
    both = code.float().T @ fires.float()
    similar = both / (code.sum(0)[:, None] + fires.sum(0)[None] - both).clamp_min(1)
    best = similar.max(0)
    share = cross.relative_norms()[best.indices, 1]
    found = best.values > 0.6
    assert found.float().mean() > (0.3 if arch == "standard" else 0.8)  # in few steps, ReLU latents keep many small activations
    right = torch.cat([(share[:10] > 0.3) & (share[:10] < 0.7), share[10:15] < 0.1, share[15:] > 0.9])
    # L1 mistakes some shared latents for latents of one model. BatchTopK avoids this (arXiv 2504.02922).
    assert right[found].float().mean() >= (0.7 if arch == "standard" else 1.0)


def _mlps(n: int, seed: int = 0) -> dict[Site, Tensor]:
    """The MLPs of three layers. All of them write the latents of layer 0; layers 1 and 2 also write latents of their own."""
    weights = torch.Generator().manual_seed(7)
    detect = torch.nn.functional.normalize(torch.randn(3, 6, D, generator=weights), dim=2)
    write = torch.randn(3, 3, 6, D, generator=weights)  # indices: source layer, target layer
    generator = torch.Generator().manual_seed(seed)
    fires = (torch.rand(3, n, 6, generator=generator) < 0.1) * (1 + torch.rand(3, n, 6, generator=generator))
    reads = {Site("mlp_in", layer): 3 * (fires[layer] @ detect[layer]) + 1 for layer in range(3)}
    outs = {}
    for layer in range(3):
        sources = {0, layer}
        outs[Site("mlp_out", layer)] = 20.0**layer * sum(fires[i] @ write[i, layer] for i in sources)
    return reads | outs


CLT = "mlp_in.0..2->mlp_out.0..2"


@pytest.mark.parametrize("arch", ["batchtopk", "jumprelu"])
def test_a_cross_layer_transcoder_never_writes_to_earlier_layers(tmp_path: Path, arch: str) -> None:
    source = Memory(_mlps(20_000), 256)
    # The bandwidth is large, since activations are at least 1 and a threshold learns only from values near it.
    jumps = {"bandwidth": 0.5} if arch == "jumprelu" else {}
    clt = _train(tmp_path / "clt", source, CLT, n_latents=48, arch=arch, tokens=150_000, **jumps)
    assert clt.cfg.architecture == "jumprelu_clt"
    assert clt.cfg.sites == tuple(Site("mlp_in", layer) for layer in range(3))
    fresh = _mlps(3_000, seed=2)
    quality = reconstruction(clt, [fresh])
    assert max(quality[f"fvu/mlp_out.{layer}"] for layer in range(3)) < 0.3
    assert quality["l0"] == pytest.approx(2, rel=0.15)
    norms = clt.decoder_norms()
    assert norms[16:32, 0].max() == norms[32:, :2].max() == 0
    # Part of mlp_out.1 comes from latents of layer 0, which mlp_in.1 does not contain. Only a CLT can predict this part.
    alone = train(
        source, dataclasses.replace(CONFIG, n_latents=16), tmp_path / "one", site="mlp_in.1", site_out="mlp_out.1", progress=False
    )
    assert quality["fvu/mlp_out.1"] < 0.7 * reconstruction(alone, [fresh])["fvu"]


@pytest.mark.parametrize("route", [f"{A}+{B}", CLT])
@pytest.mark.parametrize("arch", ["batchtopk", "standard"])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_resuming_is_exact_and_both_steps_agree(tmp_path: Path, route: str, arch: str, backend: Any) -> None:
    acts = _mlps(3_000) if route == CLT else _two_models(3_000)
    settings: dict[str, Any] = {"tokens": 5_000, "checkpoint_tokens": 1_500, "dead_tokens": 700, "backend": backend, "arch": arch}
    config = dataclasses.replace(CONFIG, n_latents=42)
    _train(tmp_path / "whole", Memory(acts, 256), route, config, **settings)
    broken = Breaks(acts, 256, 13)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "broken", broken, route, config, **settings)
    _train(tmp_path / "broken", Memory(acts, 256), route, config, **settings)
    assert files(tmp_path / "whole") == files(tmp_path / "broken")
    if backend == "torch":
        _train(tmp_path / "numba", Memory(acts, 256), route, config, **settings | {"backend": "numba"})
        losses = [[row["fvu"] for row in rows(tmp_path / name) if "fvu" in row] for name in ("whole", "numba")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_what_cannot_be_trained_is_named(tmp_path: Path) -> None:
    source = Memory(_mlps(500), 256)
    for settings, message in (
        ({"n_latents": 40}, r"n_latents=40 cannot be divided over 3 layers\. 39 is the nearest"),
        ({"n_latents": 42, "skip": True}, r"skip is for transcoders of one site"),
        ({"n_latents": 42, "arch": "matryoshka"}, r"matryoshka has no prefixes across the layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            _train(tmp_path, source, CLT, **settings)  # type: ignore[arg-type]
