"""Training from an existing SAE: before the first step, the result equals that SAE for data of any scale."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.errors import ConfigError, SAENotFound, StoreMismatch
from saekit.sae import ARCHITECTURES, SAE
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, ROWS, Breaks, D, F, files, rows, sparse_data, train_run
from trainers import TrainConfig, plans, train
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState

ARCHS = [arch for arch in ROWS if not ARCHITECTURES[arch].kind.transcodes]
OTHER = 37.5 * sparse_data(2_000, seed=8) - 11


def _config(arch: str = "topk", **settings: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, arch=arch, tokens=8_000, **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained TopK SAE."""
    folder = tmp_path_factory.mktemp("source")
    train_run(folder, dataclasses.replace(CONFIG, lr=3e-3))
    return folder


@pytest.mark.parametrize("arch", ARCHS)
def test_before_the_first_step_it_equals_the_source(tmp_path: Path, arch: str) -> None:
    sae = train_run(tmp_path, _config(arch))
    own = dataclasses.replace(DataScaling.of(OTHER, "mean"), scale=1 / sae.W_dec[0].norm().item())
    for dtype in ("float32", "float64"):
        config = _config(arch, dtype=dtype).resolve(D)
        again = TrainState(config, own, start=sae.double() if dtype == "float64" else sae).sae(site_map=SITE)
        assert again.cfg.architecture == arch
        for name, tensor in sae.state_dict().items():
            torch.testing.assert_close(again.get_parameter(name), tensor, rtol=1e-6, atol=1e-6, msg=f"{name} {dtype}")
        # Data of another size only change the scaling, not the function.
        again = TrainState(config, DataScaling.of(OTHER, "mean"), start=sae).sae()
        torch.testing.assert_close(again(OTHER), sae(OTHER), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("arch", sorted({"standard", "jumprelu", "gated", "topk"} & set(ARCHS)))
def test_before_the_first_step_it_equals_any_source(make_sae: Callable[..., SAE], arch: str, subtracts: bool) -> None:
    """A source may have decoder rows of any norm, and may or may not subtract b_dec from its input."""
    sae = make_sae(arch, D, F, apply_b_dec_to_input=subtracts)
    if arch != "topk":  # TopK ranks latents by activation, so that other row norms would change its selection
        sae.W_dec.mul_(torch.linspace(0.3, 3, F)[:, None])
    config = _config(arch, l0=24).resolve(D)
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(2))
    again = TrainState(config, DataScaling.of(OTHER, "mean"), start=sae).sae()
    assert (sae.encode_dense(x) > 0).float().mean() > 0.05
    torch.testing.assert_close(again(x), sae(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.encode_dense(x) > 0, sae.encode_dense(x) > 0)


def test_it_trains_on_with_another_sparsity(tmp_path: Path, source: Path) -> None:
    sae = SAE.load(source)
    config = _config(l0=2, lr=1e-3, warmup=0.0)
    arguments: dict[str, Any] = {"x": sparse_data(20_000, seed=4)}
    tuned = train_run(tmp_path / "tuned", config, start=sae, **arguments)
    assert (tuned.cfg.k, tuned.cfg.n_latents) == (2, F)
    train_run(tmp_path / "fresh", config, **arguments)
    first, last = ([row["fvu"] for row in rows(tmp_path / name) if "fvu" in row] for name in ("tuned", "fresh"))
    assert first[0] < last[-1] and first[-1] < first[0]  # fine-tuning starts better than the fresh run ends, and improves
    assert json.loads((tmp_path / "tuned" / "train.json").read_text())["data"]["start"] == sae.fingerprint()

    with pytest.raises(StoreMismatch, match="start was "):
        train_run(tmp_path / "tuned", config, **arguments)
    x = arguments["x"]
    with pytest.raises(KeyboardInterrupt):
        heldout = Memory(sparse_data(3_000, seed=1), 500, epochs=1)
        train(Breaks(x, 256, 20), config, tmp_path / "broken", site=SITE, start=sae, heldout=heldout, progress=False)
    train_run(tmp_path / "broken", config, start=sae, **arguments)
    assert files(tmp_path / "broken") == files(tmp_path / "tuned")


@pytest.mark.parametrize("arch", sorted({"jumprelu", "gated", "standard"} & set(ARCHS)))
def test_a_penalised_sae_keeps_its_sparsity(tmp_path: Path, arch: str) -> None:
    """Its L0 stays near the target and does not rise to the initial L0 of runs from random weights."""
    x = sparse_data(20_000, seed=4)
    sae = train_run(tmp_path / "source", dataclasses.replace(CONFIG, arch=arch, lr=3e-3, tokens=40_000, l0=4), x=x)
    before = float((sae.encode_dense(x) > 0).sum(1).float().mean())
    train_run(tmp_path / "tuned", _config(arch, l0=round(before), log_tokens=500, warmup=0.0), start=sae, x=x)
    l0 = [row["l0"] for row in rows(tmp_path / "tuned") if "l0" in row]
    assert len(l0) > 10 and max(l0) < 2.8 * before  # runs from random weights start at 4 times the target


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_latent_with_a_zero_decoder_row_gives_no_nan(tmp_path: Path, source: Path, backend: str) -> None:
    sae = SAE.load(source)
    sae.W_dec[5] = 0
    sae.b_enc[5] = -1e6  # the latent never fires
    tuned = train_run(tmp_path / "tuned", _config(backend=backend, aux_coefficient=0.0), start=sae)
    assert all(tensor.isfinite().all() for tensor in tuned.state_dict().values())


def test_a_description_takes_what_the_sae_says_and_no_more(source: Path) -> None:
    settings = {"from": str(source), "tokens": 9_000}
    (plan,) = plans({**settings, "name": "tuned"}, "out", lambda site: D)
    assert (plan.config.arch, plan.config.n_latents, plan.config.l0) == ("topk", F, 4)
    assert (plan.route.site, plan.out) == (SITE, Path("out") / str(SITE) / "tuned")
    assert plan.start is not None and plan.start.fingerprint() == SAE.load(source).fingerprint()
    made = plans({**settings, "site": "mlp_out.3", "arch": "batchtopk", "grid": {"k": [1, 2]}}, "out", lambda site: D)
    assert [(each.config.arch, each.config.l0, str(each.route.site)) for each in made] == [
        ("batchtopk", 1, "mlp_out.3"),
        ("batchtopk", 2, "mlp_out.3"),
    ]
    with pytest.raises(SAENotFound):
        plans({"from": "./nothing"}, "out", lambda site: D)
    with pytest.raises(ConfigError, match="from: 3 is impossible"):
        plans({"from": 3}, "out", lambda site: D)


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, source: Path, make_sae: Callable[..., SAE]
) -> None:
    sae = SAE.load(source)
    for start, config, error, message in (
        (make_sae("topk", D + 1, F), _config(), StoreMismatch, f"is for {D + 1} numbers per token, and these are {D}"),
        (make_sae("transcoder", D, F, d_out=D), _config(), ConfigError, "is a transcoder, and the run trains an SAE"),
        (sae, _config(n_latents=F - 1), ConfigError, f"n_latents={F - 1} is impossible .* {F}"),
        (make_sae("topk", D, F, normalize_activations="layer_norm"), _config(), ConfigError, "normalises every token"),
        (make_sae("gated", D, F), _config(), ConfigError, "topk cannot start from gated-96: that has no b_enc"),
        (make_sae("jumprelu", D, F), _config("standard"), ConfigError, "standard would lose the threshold of jumprelu-96"),
    ):
        with pytest.raises(error, match=message):
            train_run(tmp_path / "no", config, start=start)
        assert not (tmp_path / "no" / "cfg.json").exists()
