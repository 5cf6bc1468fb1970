"""The quadratic penalty of Gemma Scope 2: loss and gradients are those of sae-lens, and L0 comes to its target."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from saekit.errors import ConfigError
from tests.kit import dense
from tests.kit.runs import CONFIG, rows, sparse_data, train_run
from trainers import TrainConfig
from trainers.objectives.base import Now


@pytest.mark.parametrize("path", dense.PATHS)
@pytest.mark.parametrize("share", [0.1, 0.9])  # while the target falls, and after
def test_loss_and_gradients_are_those_of_sae_lens(path: str, share: float) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.saes.sae import TrainStepInput

    B, D, F, eps, weight = 60, 20, 90, 0.15, 0.3
    config = TrainConfig(
        F, "jumprelu", l0=5, penalty="quadratic", sparsity=weight, sparsity_warmup=0.0, bandwidth=eps, aux_coefficient=0.0
    ).resolve(D)
    target = 20 + (5 - 20) * share / 0.2 if share < 0.2 else 5.0
    p, x = dense.random_parameters(F, D, 0, "jumprelu"), dense.data(1, B, D)
    p.log_threshold_F = (eps + 0.3 * torch.rand(F, generator=torch.Generator().manual_seed(2))).log()  # h > 0 near all of them
    theirs = sae_lens.JumpReLUTrainingSAE(
        sae_lens.JumpReLUTrainingSAEConfig(
            d_in=D,
            d_sae=F,
            dtype="float64",
            normalize_activations="none",
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=target,
            jumprelu_bandwidth=eps,
        )
    )
    given = {"W_enc": p.W_enc_FD.T, "b_enc": p.b_enc_F, "W_dec": p.W_dec_FE, "b_dec": p.b_dec_E}
    given["threshold"] = p.log_threshold_F.exp()
    for name, tensor in given.items():
        setattr(theirs, name, nn.Parameter(tensor.double().clone()))
    step = TrainStepInput(x.double(), {"l0": weight}, None, 0, False)
    expected = theirs.training_forward_pass(step).loss
    expected.backward()
    ours = dataclasses.replace(config, screen="screened" in path if path != "torch" else None)
    it = dense.made(ours, D, variance=1.0)
    now = Now(share, torch.arange(0))
    if path == "torch":
        leaves = p.map(lambda tensor: tensor.detach().requires_grad_())
        outcome = it.loss(leaves, x, x, now)
        assert isinstance(outcome.loss, torch.Tensor)
        gradient = dict(zip(leaves, torch.autograd.grad(outcome.loss, list(leaves.values()))))
    else:
        outcome, sparse = it.gradient(p, x, x, now)
        gradient = sparse.dense(p)
    assert float(torch.as_tensor(outcome.loss).detach()) == pytest.approx(expected.item(), rel=1e-5)
    theirs_by_name = {name: getattr(theirs, name).grad for name in given}
    pairs = {
        "W_enc_FD": theirs_by_name["W_enc"].T,
        "b_enc_F": theirs_by_name["b_enc"],
        "W_dec_FE": theirs_by_name["W_dec"],
        "b_dec_E": theirs_by_name["b_dec"],
        "log_threshold_F": theirs_by_name["threshold"] * given["threshold"].double(),
    }
    for name, tensor in pairs.items():
        scale = tensor.abs().max().item()
        assert scale > 1e-3
        torch.testing.assert_close(gradient[name].double(), tensor, atol=1e-5 * scale, rtol=1e-4, msg=name)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_l0_comes_to_its_target_from_above(tmp_path: Path, backend: str) -> None:
    config = dataclasses.replace(CONFIG, arch="jumprelu", penalty="quadratic", lr=3e-3, tokens=150_000, backend=backend)
    sae = train_run(tmp_path, config)
    code = sae.encode_dense(sparse_data(5_000, seed=1))
    assert float((code > 0).sum()) / len(code) == pytest.approx(config.l0, rel=0.1)
    l0 = [row["l0"] for row in rows(tmp_path) if "l0" in row]
    assert l0[0] > 2 * config.l0


def test_it_is_a_choice_of_jumprelu_only() -> None:
    with pytest.raises(ConfigError, match=r"penalty='quadratic' is impossible for topk. It is a choice of jumprelu"):
        TrainConfig(64, penalty="quadratic")
