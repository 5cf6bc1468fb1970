"""Whole runs: quality, scale, files, resuming after SIGKILL, and errors that stop a run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.errors import CheckpointError, ConfigError, Diverged, NonFiniteActivations, StoreMismatch
from saekit.sae import SAE, load_sparsity
from saekit.sae.metrics import reconstruction
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, LONGER, Breaks, D, F, files, rows, sparse_data, train_run
from trainers import TrainConfig, train
from trainers.loop.data_scaling import DataScaling, geometric_median
from trainers.loop.state import TrainState


def test_a_run_learns_and_leaves_only_its_results(tmp_path: Path) -> None:
    sae = train_run(tmp_path, LONGER)
    assert set(files(tmp_path)) == {
        *("cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "train.json", "metrics.jsonl")
    }
    y = sparse_data(3_000, seed=1)
    quality = reconstruction(sae, [y])
    variance_D = torch.linalg.svdvals(y - y.mean(0)).square()
    best_fixed_directions = 1 - float(
        variance_D[:4].sum() / variance_D.sum()
    )  # PCA with the same number of coefficients per token
    assert quality["fvu"] < best_fixed_directions / 3
    assert quality["l0"] == 4
    last = rows(tmp_path)[-1]
    assert last["heldout/fvu"] == pytest.approx(quality["fvu"], rel=1e-6)
    assert last["tokens"] == LONGER.tokens
    logged = [row for row in rows(tmp_path) if "fvu" in row]
    sizes = [row["tokens"] - before["tokens"] for before, row in itertools.pairwise(logged)][-6:]
    assert sum(sizes) == pytest.approx(LONGER.tokens / 10, rel=0.2)  # a log row covers a fiftieth of the run
    for name in ("fvu", "l0"):
        expected = sum(size * row[name] for size, row in zip(sizes, logged[-6:])) / sum(sizes)
        assert last[f"train/{name}"] == pytest.approx(expected)
    assert last["epochs"] == json.loads((tmp_path / "train.json").read_text())["epochs"] == LONGER.tokens / 20_000
    assert [row["tokens"] for row in rows(tmp_path) if "lr" in row][-1] == LONGER.tokens
    frequency = load_sparsity(tmp_path)
    assert frequency is not None
    assert frequency.sum().item() == pytest.approx(4, abs=1e-3)
    assert TrainConfig.load(tmp_path / "train.json") == LONGER.resolve(D)
    assert sae.cfg.site == SITE
    assert sae.cfg.apply_b_dec_to_input
    assert SAE.load(tmp_path).fingerprint() == sae.fingerprint()


def test_the_scale_of_the_data_does_not_matter_and_is_in_every_saved_sae(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tokens=10_240, checkpoint_tokens=2_560)
    x = sparse_data(20_000)
    saved: dict[float, list[SAE]] = {}
    for factor in (1.0, 1024.0):  # a power of two, so that rounding does not differ
        out = tmp_path / str(factor)
        with pytest.raises(KeyboardInterrupt):
            train(Breaks(x * factor, 256, after=31), config, out, site=SITE, progress=False)
        saved[factor] = [SAE.load(folder) for folder in sorted((out / "checkpoints").iterdir())]
        saved[factor].append(train(Memory(x * factor, 256), config, out, site=SITE, progress=False))
    assert len(saved[1.0]) == 3
    y = sparse_data(300, seed=3)
    for small, large in zip(saved[1.0], saved[1024.0]):
        torch.testing.assert_close(large(y * 1024.0), small(y) * 1024.0, rtol=1e-5, atol=1e-2)
        assert reconstruction(small, [y])["fvu"] < 1
        norm_F = small.W_dec.norm(dim=1)
        torch.testing.assert_close(norm_F, norm_F[0].expand(F))


def test_float64_takes_the_torch_step_and_agrees(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tokens=10_000)
    one = train_run(tmp_path / "32", config)
    two = train_run(tmp_path / "64", dataclasses.replace(config, dtype="float64"))
    assert two.dtype == torch.float64
    y = sparse_data(2_000, seed=5)
    assert reconstruction(one, [y])["fvu"] == pytest.approx(reconstruction(two, [y.double()])["fvu"], rel=0.05)
    with pytest.raises(ConfigError, match="float64"):
        train_run(tmp_path / "no", dataclasses.replace(config, dtype="float64", backend="numba"))


def test_the_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tokens=10_000, n_latents=700)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            train_run(tmp_path / str(threads), config)
    finally:
        torch.set_num_threads(before)
    assert torch.get_num_threads() == before
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")


FULL_DISK = """
import resource, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from tests.kit.runs import CONFIG, train_run
import dataclasses
from saekit.errors import StorageFull
config = dataclasses.replace(CONFIG, tokens=20_000, checkpoint_tokens=2_000)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    train_run(Path(sys.argv[1]), config)
except StorageFull as error:
    print("StorageFull:", error)
"""


@pytest.mark.parametrize("limit", [30_000, 1_000])  # less than a state needs; less than the metrics need
def test_a_full_disk_is_a_typed_error_and_leaves_nothing_half_written(tmp_path: Path, limit: int) -> None:
    code = FULL_DISK.format(here=str(Path(__file__).parents[2]), limit=limit)
    command = [sys.executable, "-c", code, str(tmp_path / "sae")]
    result = subprocess.run(command, env={**os.environ, "NUMBA_DISABLE_JIT": "0"}, capture_output=True, text=True)
    assert result.stdout.startswith("StorageFull: No room"), result.stderr
    assert not list((tmp_path / "sae").rglob("*.partial"))
    assert not (tmp_path / "sae" / "cfg.json").exists()


def test_auxk_revives_dead_latents() -> None:
    x = sparse_data(20_000)
    dead_at_the_end = {}
    for coefficient in (0.0, 1 / 32):
        config = dataclasses.replace(CONFIG, tokens=100_000, dead_tokens=1_000, aux_coefficient=coefficient, lr=3e-3).resolve(D)
        training = TrainState(config, DataScaling.of(x, "mean"))
        training.p.W_enc_FD[: F // 2] *= 0.05  # too small to be among the top k
        for batch in torch.cat([x] * 5).split(256):
            training.step(batch)
        dead_at_the_end[coefficient] = len(training.dead.dead)
    assert dead_at_the_end[0.0] >= F // 2
    assert dead_at_the_end[1 / 32] < F // 10


def test_a_finished_run_is_returned_and_another_one_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tokens=3_000)
    sae = train_run(tmp_path, config)
    before = files(tmp_path)
    assert train_run(tmp_path, dataclasses.replace(config, keep=5)).fingerprint() == sae.fingerprint()
    with pytest.raises(StoreMismatch, match="l0 was 4 and is 5 now"):
        train_run(tmp_path, dataclasses.replace(config, l0=5))
    assert files(tmp_path) == before
    (tmp_path / "train.json").unlink()
    with pytest.raises(StoreMismatch, match="not trained here"):
        train_run(tmp_path, config)


def test_checkpoints_of_another_run_or_data_are_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tokens=10_000, checkpoint_tokens=1_000)
    x = sparse_data(5_000)
    with pytest.raises(KeyboardInterrupt):
        train(Breaks(x, 256, after=20), config, tmp_path, site=SITE, progress=False)
    before = files(tmp_path)
    with pytest.raises(StoreMismatch, match="lr was"):
        train(Memory(x, 256), dataclasses.replace(config, lr=0.5), tmp_path, site=SITE, progress=False)
    with pytest.raises(StoreMismatch, match="width was 24"):
        train(Memory(x[:, :20], 256), config, tmp_path, site=SITE, progress=False)
    with pytest.raises(CheckpointError, match="another seed"):
        train(Memory(x, 256, seed=3), config, tmp_path, site=SITE, progress=False)
    assert files(tmp_path) == before
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    (newest / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=newest.name):
        train(Memory(x, 256), config, tmp_path, site=SITE, progress=False)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_batch_with_nan_stops_the_run_before_it_spoils_anything(tmp_path: Path, backend: Any, bad: float) -> None:
    config = dataclasses.replace(CONFIG, tokens=20_000, checkpoint_tokens=1_000, sample_tokens=256, backend=backend)
    x = sparse_data(20_000)
    source = Memory(x, 256)
    row = next(iter(Memory(torch.arange(20_000.0)[:, None].expand(-1, D), 20_000)))[SITE][256 * 30 + 9, 0]
    x[int(row), 3] = bad  # this row is in batch 30
    with pytest.raises(NonFiniteActivations, match=r"batch 30 .*row 9"):
        train(source, config, tmp_path, site=SITE, progress=False)
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    assert [folder.name for folder in checkpoints] == ["step-000000024", "step-000000028"]
    assert all(tensor.isfinite().all() for folder in checkpoints for tensor in SAE.load(folder).state_dict().values())
    assert not (tmp_path / "cfg.json").exists()


def test_nan_in_the_first_sample_is_named(tmp_path: Path) -> None:
    x = sparse_data(500)
    x[3] = torch.nan
    with pytest.raises(NonFiniteActivations, match="activation vectors hold NaN"):
        train(Memory(x, 100), CONFIG, tmp_path, site=SITE, progress=False)


def test_divergence_is_told_from_bad_data(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"batch 1 .*diverged.*no checkpoint.*learning rate \(1e\+30\)"):
        train_run(tmp_path, dataclasses.replace(CONFIG, lr=1e30, warmup=0.0))


def test_exact_number_of_tokens_and_data_that_end_early(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tokens=1_003)
    train_run(tmp_path / "exact", config)
    assert rows(tmp_path / "exact")[-1]["tokens"] == 1_003
    with pytest.warns(UserWarning, match="ended after 700 of 1003"):
        train(Memory(sparse_data(700), 256, epochs=1), config, tmp_path / "short", site=SITE, progress=False)
    assert SAE.load(tmp_path / "short").cfg.n_latents == F


def test_statistics_centre_and_scale() -> None:
    x = sparse_data(4_000) * 7
    data = DataScaling.of(x, "mean")
    scaled = x.double() * data.scale
    assert scaled.norm(dim=1).mean().item() == pytest.approx(D**0.5, rel=1e-9)
    torch.testing.assert_close(data.centre_D.double(), scaled.mean(0), atol=1e-6, rtol=1e-6)
    assert data.variance == pytest.approx(scaled.var(0, correction=0).sum().item())
    point = geometric_median(scaled)
    distance = (scaled - point).norm(dim=1)
    slope = ((scaled - point) / distance[:, None]).mean(0)  # zero at the minimum of the summed distance
    assert slope.norm() < 1e-4
    outlier = torch.cat([scaled, torch.full((40, D), 1e6, dtype=torch.float64)])
    assert (geometric_median(outlier) - point).norm() < 0.2 < (outlier.mean(0) - point).norm()
    assert DataScaling.of(torch.zeros(5, 3), "geometric_median").scale == 1


def test_firing_frequency_and_dead_fraction_are_those_of_a_recount(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tokens=5_120, lr=1e-12, warmup=0.0, dead_tokens=1_024).resolve(D)
    x = sparse_data(5_120)
    training = TrainState(config, DataScaling.of(x, "mean"))
    codes = []
    for batch in x.split(256):
        training.step(batch)
        sae = training.sae()
        codes.append(sae.encode_dense(batch) > 0)
    fired = torch.cat(codes)
    frequency = training.frequency()
    assert frequency is not None
    torch.testing.assert_close(frequency, fired[-1_024:].float().mean(0), atol=1e-4, rtol=1e-3)
    dead = (~fired[-1_280:].any(0)).sum()  # dead means silent for more than 1024 tokens; the check runs every few steps
    assert len(training.dead.dead) <= int((~fired[-1_024:].any(0)).sum())
    assert len(training.dead.dead) >= int(dead) - 2
