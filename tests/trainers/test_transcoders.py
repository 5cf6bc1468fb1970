"""Transcoders of every sparse architecture: losses and gradients, initialisation, and files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.errors import ConfigError
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import ARCHITECTURES, SAE
from saekit.sae.metrics import reconstruction
from tests.kit import dense
from tests.kit.memory import Memory
from tests.kit.runs import Breaks, files
from trainers import OBJECTIVES, TrainConfig, plans, train
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState

IN, OUT = Site("mlp_in", 1), Site("mlp_out", 1)
D, E = 16, 12
ARCHS = [arch for arch in OBJECTIVES if ARCHITECTURES[arch].transcoder]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("path", dense.PATHS)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_gradients_are_those_of_dense_float64(arch: str, path: str, data: st.DataObject) -> None:
    B, F, read = data.draw(st.integers(2, 60)), data.draw(st.integers(2, 120)), data.draw(st.integers(2, 40))
    write = data.draw(st.integers(1, 40).filter(lambda width: width != read))
    k, aux_k, seed = data.draw(st.integers(1, F)), data.draw(st.integers(1, F)), data.draw(st.integers(0, 10**6))
    dead = torch.randperm(F, generator=torch.Generator().manual_seed(seed))[: data.draw(st.integers(0, F))].sort().values
    more = {"aux_coefficient": data.draw(st.sampled_from([0.0, 2.0])), "bandwidth": 0.3, "skip": data.draw(st.booleans())}
    config = dense.config(F, read, k, arch, aux_k=aux_k, **more)
    p = dense.random_parameters(F, read, seed, arch, write)
    if config.skip:
        p.W_skip_ED = 0.3 * dense.data(seed + 2, write, read)
    x = dense.clear(config, p, dense.data(seed + 1, B, read), dead)
    state = {"log_weight": torch.tensor(-1.0)} if arch in ("jumprelu", "gated", "standard") else {}
    dense.check(path, config, p, x, dead, y=dense.data(seed + 3, len(x), write), weight=math.exp(-1), state=state)


def _layer(n: int, seed: int = 0) -> dict[Site, Tensor]:
    """Inputs and outputs of a sparse MLP with a linear part, with different widths and scales and non-zero means."""
    weights = torch.Generator().manual_seed(7)
    W, V, U = (torch.randn(*shape, generator=weights) for shape in ((D, 40), (40, E), (D, E)))
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 1
    neurons = torch.relu(x @ W - W.sum(0) - 4)
    return {IN: 3 * x, OUT: 40 * neurons @ V + 30 * x @ U + 300}


def _train(out: Path, arch: str, source: Memory | None = None, **settings: Any) -> SAE:
    small = {"n_latents": 80, "l0": 4, "tokens": 60_000, "batch_size": 256, "lr": 5e-3, "dead_tokens": 5_000}
    config = TrainConfig(arch=arch, **{**small, **settings})  # type: ignore[arg-type]
    return train(source or Memory(_layer(20_000), 256), config, out, site=IN, site_out=OUT, progress=False)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_it_predicts_and_sae_lens_reads_it_with_equal_outputs(tmp_path: Path, arch: str, skip: bool) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    ours = _train(tmp_path, arch, skip=skip)
    stored = ("" if arch == "standard" else "jumprelu_") + ("skip_" if skip else "") + "transcoder"
    assert ours.cfg.architecture == SAE.load(tmp_path).cfg.architecture == stored
    assert (ours.cfg.site, ours.cfg.site_out, ours.cfg.d_in, ours.cfg.d_out) == (IN, OUT, D, E)
    fresh = _layer(2_000, seed=2)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    code, y_hat = ours.encode_dense(fresh[IN]), ours(fresh[IN])
    torch.testing.assert_close(code, theirs.encode(fresh[IN]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y_hat, theirs(fresh[IN]), atol=1e-5 * 300, rtol=1e-5)
    quality = reconstruction(ours, [fresh])
    assert quality["l0"] == pytest.approx(4, rel=0.15)
    assert quality["fvu"] < (0.3 if skip else 0.6)


def test_the_start_predicts_the_mean() -> None:
    acts = _layer(4_000)
    reads, writes = (DataScaling.of(acts[site], "geometric_median") for site in (IN, OUT))
    for arch in ARCHS:
        config = TrainConfig(n_latents=50, l0=4, arch=arch, skip=True, tokens=1_000, batch_size=100).resolve(D)
        training = TrainState(config, reads, writes)
        assert not training.objective.unit_rows
        assert training.p.W_dec_FE.abs().max() == training.p.W_skip_ED.abs().max() == 0
        sae = training.sae(site_map=SiteMap((IN,), (OUT,)))
        torch.testing.assert_close(sae(acts[IN]), acts[OUT].mean(0).expand(4_000, -1), rtol=1e-4, atol=1e-2)
        h = acts[IN] * reads.scale @ training.p.W_enc_FD.T + training.p.b_enc_F
        if arch in ("standard", "gated"):
            h = h - h.mean()  # the bias contains the initial threshold
        assert h.mean(0).abs().max() < 1e-4


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_resuming_is_exact_and_both_steps_agree(tmp_path: Path, arch: str, backend: Any) -> None:
    settings = {"tokens": 8_000, "checkpoint_tokens": 3_000, "dead_tokens": 900, "skip": True, "backend": backend}
    acts = _layer(5_000)
    _train(tmp_path / "whole", arch, Memory(acts, 256), **settings)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "broken", arch, Breaks(acts, 256, 17), **settings)
    _train(tmp_path / "broken", arch, Memory(acts, 256), **settings)
    assert files(tmp_path / "whole") == files(tmp_path / "broken")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_training_may_start_from_a_transcoder(tmp_path: Path, arch: str, skip: bool) -> None:
    found = _train(tmp_path / "first", arch, skip=skip, tokens=8_000)
    acts = {IN: -2 * _layer(2_000, seed=3)[IN], OUT: 9 - _layer(2_000, seed=3)[OUT]}
    reads, writes = (DataScaling.of(acts[site], "mean") for site in (IN, OUT))
    (plan,) = plans({"from": str(tmp_path / "first")}, tmp_path, lambda site: D)
    assert (plan.config.arch, plan.config.skip, str(plan.route)) == (arch, skip, "mlp_in.1->mlp_out.1")
    again = TrainState(plan.config.resolve(D), reads, writes, found).sae()
    x = _layer(500)[IN]
    assert (found.encode_dense(x) > 0).any()
    torch.testing.assert_close(again(x), found(x), rtol=1e-4, atol=1e-2)


def test_an_architecture_without_a_file_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="abstopk cannot be trained as a transcoder"):
        _train(tmp_path, "abstopk")
    assert not list(tmp_path.iterdir())


def test_settings_for_transcoders_only(tmp_path: Path) -> None:
    source, config = Memory(_layer(300), 100), TrainConfig(n_latents=8, l0=2, tokens=300, skip=True)
    with pytest.raises(ConfigError, match="skip is for transcoders"):
        train(source, config, tmp_path, site=IN, progress=False)
    sae = train(source, dataclasses.replace(config, skip=False), tmp_path / "sae", site=IN, progress=False)
    with pytest.raises(ConfigError, match="is an SAE, and the run trains a transcoder"):
        train(source, config, tmp_path, site=IN, site_out=OUT, start=sae, progress=False)
