"""Covariance whitening: what it does to activations, and that folded SAEs equal unfolded ones, as in sae-lens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.sae import ARCHITECTURES, SAE
from saekit.sae.metrics import reconstruction
from saekit.sae.whitening import Whitening
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, ROWS, Breaks, D, files, rows, sparse_data, train_run
from trainers import OBJECTIVES, TrainConfig, train
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState

OUT = Site("mlp_out", 0)
SAES = [arch for arch in ROWS if not ARCHITECTURES[arch].kind.transcodes]
TRANSCODERS = [arch for arch in OBJECTIVES if ARCHITECTURES[arch].transcoder]


def stretched(n: int, seed: int = 0) -> Tensor:
    """Sparse data with a large mean, whose directions have very different variances."""
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5)))[0]
    return sparse_data(n, seed) @ turn * torch.logspace(-1.5, 1.5, D) + 4


def _config(arch: str = "topk", **settings: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, arch=arch, scaling="whitening", **{"tokens": 8_000, **settings})


def test_whitened_activations_have_equal_variances() -> None:
    x = stretched(20_000).double()
    whole, parts = Whitening.of([x], 0.0), Whitening.of(x.split(700), 0.0)
    for w in (whole, parts):
        z = w.apply(x)
        torch.testing.assert_close(torch.cov(z.T), torch.eye(D, dtype=torch.float64), atol=1e-9, rtol=0)
        assert z.mean(0).abs().max() < 1e-9
        torch.testing.assert_close(w.reversed.apply(z), x, atol=1e-9, rtol=1e-9)
    data = DataScaling.of(x.float(), "mean", whiten=True)
    value_D = torch.linalg.eigvalsh(torch.cov(x.T))
    assert data.variance == pytest.approx(float((value_D / (value_D + 1e-3 * value_D.mean())).sum()), rel=1e-3)
    assert data.scale == 1.0


def test_directions_without_variance_stay_small() -> None:
    x = stretched(500).double()
    x[:, 3] = 7.0
    w = Whitening.of([x])
    assert w.matrix_DD.isfinite().all()
    assert w.apply(x).square().mean() < 1.1
    assert Whitening.of([torch.zeros(10, 4)]).matrix_DD.isfinite().all()


@pytest.mark.parametrize("arch", SAES)
def test_the_estimate_and_the_fold_are_those_of_sae_lens(arch: str) -> None:
    pytest.importorskip("sae_lens")
    from sae_lens.training.activation_scaler import ActivationScaler

    x = stretched(4_096).double()
    variance = float((x - x.mean(0)).square().sum(1).sum() / (len(x) - 1))
    scaler = ActivationScaler()
    scaler.estimate_whitening(D, iter(x.split(1_024)), 4, eps=1e-3 * variance / D)
    data = DataScaling.of(x, "mean", whiten=True)
    w, theirs = data.whitening, scaler.whitening
    assert w is not None and theirs is not None
    # Eigenvectors are unique up to their sign.
    torch.testing.assert_close(w.matrix_DD @ w.matrix_DD.T, theirs.matrix @ theirs.matrix.T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(w.mean_D, theirs.mean)
    training = TrainState(_config(arch, dtype="float64").resolve(D), data)
    ours = training.sae()
    plain = training.objective
    plain.reads = plain.writes = dataclasses.replace(data, whitening=None)
    unfolded = plain.sae(training.p)
    folder_sae = _theirs(unfolded)
    folder_sae.fold_activation_whitening(w.mean_D, w.matrix_DD, w.inverse_DD)
    y = stretched(300, seed=2).double()
    torch.testing.assert_close(ours.encode_dense(y), folder_sae.encode(y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours(y), folder_sae(y), rtol=1e-8, atol=1e-8)


def _theirs(sae: SAE) -> Any:
    import tempfile

    import sae_lens

    with tempfile.TemporaryDirectory() as folder:
        sae.save(folder)
        return sae_lens.SAE.load_from_disk(folder, dtype="float64")


@pytest.mark.parametrize("arch", SAES)
def test_folded_equals_unfolded(tmp_path: Path, arch: str) -> None:
    """The written folder reads activations as they are; training read whitened ones."""
    x, y = stretched(20_000), stretched(400, seed=3)
    config = _config(arch, tokens=30_000).resolve(D)
    data = DataScaling.of(x[:4_096], "mean", whiten=True)
    training, w = TrainState(config, data), data.whitening
    assert w is not None
    for batch in x.split(256):
        training.step(batch)
    ours = training.sae()
    training.objective.reads = training.objective.writes = dataclasses.replace(data, whitening=None)
    unfolded = training.sae()
    z = w.apply(y)
    code = unfolded.encode_dense(z)
    assert (code != 0).any()
    torch.testing.assert_close(ours.encode_dense(y), code, rtol=1e-5, atol=1e-5 * float(code.abs().max()) + 1e-4)
    back = w.reversed.apply(unfolded(z))
    torch.testing.assert_close(ours(y), back, rtol=1e-5, atol=1e-5 * float(back.abs().max()) + 1e-4)
    ours.save(tmp_path)
    torch.testing.assert_close(_theirs(ours)(y.double()).float(), ours(y), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("arch", TRANSCODERS)
@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_fold_both_sides(arch: str, skip: bool) -> None:
    x, y = stretched(6_000).double(), stretched(6_000, seed=9).double().flip(1) - 8
    reads, writes = (DataScaling.of(each, "mean", whiten=True) for each in (x, y))
    config = _config(arch, dtype="float64", skip=skip).resolve(D)
    training = TrainState(config, reads, writes)
    for x_BD, y_BE in zip(x.split(256), y.split(256)):
        training.step(x_BD, y_BE)
    ours = training.sae()
    it = training.objective
    it.reads, it.writes = (dataclasses.replace(each, whitening=None) for each in (reads, writes))
    unfolded = training.sae()
    assert reads.whitening is not None and writes.whitening is not None
    z = reads.whitening.apply(x[:200])
    torch.testing.assert_close(ours.encode_dense(x[:200]), unfolded.encode_dense(z), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours(x[:200]), writes.whitening.reversed.apply(unfolded(z)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("arch", ["jumprelu", "gated", "standard"])  # TopK would rank latents by other norms
def test_training_from_an_sae_begins_with_that_sae(tmp_path: Path, arch: str) -> None:
    """The inverse of the fold: an SAE of raw activations in whitened coordinates computes the same function."""
    x = stretched(4_000).double()
    sae = train_run(tmp_path, dataclasses.replace(_config(arch), scaling="norm", dtype="float64"), x=x.float())
    config = _config(arch, dtype="float64").resolve(D)
    begun = TrainState(config, DataScaling.of(x, "mean", whiten=True), start=sae).sae()
    torch.testing.assert_close(begun(x[:300]), sae(x[:300]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("arch", ["topk", "gated"])
def test_resuming_is_exact(tmp_path: Path, arch: str) -> None:
    config, x = _config(arch, tokens=12_000, checkpoint_tokens=3_000), stretched(5_000)
    train_run(tmp_path / "whole", config, x)
    heldout = Memory(sparse_data(3_000, seed=1), 500, epochs=1)
    for after in (5, 17, 33):
        with pytest.raises(KeyboardInterrupt):
            train(Breaks(x, 256, after), config, tmp_path / "broken", site=SITE, heldout=heldout, progress=False)
    train_run(tmp_path / "broken", config, x)
    assert files(tmp_path / "whole") == files(tmp_path / "broken")


def test_small_directions_are_reconstructed_better(tmp_path: Path) -> None:
    """The purpose: directions of little variance are not left out. The FVU of the log is that of whitened activations."""
    x, y = stretched(60_000), stretched(3_000, seed=1)
    found = {}
    for scaling in ("norm", "whitening"):
        config = _config(tokens=200_000, lr=3e-3, l0=4)
        sae = train_run(tmp_path / scaling, dataclasses.replace(config, scaling=scaling), x)  # type: ignore[arg-type]
        error = (sae(y) - y).square().mean(0) / y.var(0)
        found[scaling] = float(error.mean())
        (last,) = [row for row in rows(tmp_path / scaling) if "epochs" in row or "heldout/fvu" in row][-1:]
        assert ("train/fvu" in last) == (scaling == "norm")
    assert found["whitening"] < 0.7 * found["norm"]
    assert reconstruction(SAE.load(tmp_path / "whitening"), [y])["fvu"] < 1


def test_it_is_for_dictionaries_of_one_site(tmp_path: Path) -> None:
    data = Memory({SITE: sparse_data(2_000), OUT: sparse_data(2_000, 1)}, 256)
    with pytest.raises(ConfigError, match="Whitening is for dictionaries of one site"):
        train(data, _config(), tmp_path, site=f"{SITE}+{OUT}", progress=False)
    assert not list(tmp_path.iterdir())
