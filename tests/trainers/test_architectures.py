"""Properties of every architecture: its file, its L0, exact resuming, and equality of the two training steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.sae.metrics import reconstruction
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, ROWS, Breaks, files, rows, sparse_data, train_run
from trainers import TrainConfig, train


def _config(arch: str, tokens: int, **settings: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, arch=arch, tokens=tokens, **settings)


@pytest.mark.parametrize("arch", ROWS)
def test_sae_lens_reads_the_folder_with_equal_outputs(tmp_path: Path, arch: str) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    ours = train_run(tmp_path, _config(arch, 6_000))
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    x = sparse_data(200, seed=2)
    code = ours.encode_dense(x)
    assert 0 < (code > 0).sum() < code.numel() / 2
    torch.testing.assert_close(code, theirs.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ROWS)
def test_it_learns_and_reaches_the_target_l0(tmp_path: Path, arch: str) -> None:
    sae = train_run(tmp_path, _config(arch, 150_000, lr=3e-3))
    y = sparse_data(3_000, seed=1)
    quality = reconstruction(sae, [y])
    variance_D = torch.linalg.svdvals(y - y.mean(0)).square()
    best_fixed_directions = 1 - float(
        variance_D[: CONFIG.l0].sum() / variance_D.sum()
    )  # PCA with the same number of coefficients per token
    assert quality["fvu"] < best_fixed_directions * (1.1 if arch == "standard" else 0.5)  # an L1 penalty shrinks what fires
    assert quality["l0"] == pytest.approx(CONFIG.l0, rel=0.1)


@pytest.mark.parametrize("arch", ROWS)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_resuming_is_exact_wherever_a_run_broke_off(tmp_path: Path, arch: str, backend: Any) -> None:
    config = _config(arch, 12_000, checkpoint_tokens=3_000, backend=backend, dead_tokens=900)
    x = sparse_data(5_000)
    train_run(tmp_path / "whole", config, x)
    heldout = Memory(sparse_data(3_000, seed=1), 500, epochs=1)
    for after in (5, 17, 33):  # of 47 batches; each attempt resumes from the last checkpoint of the previous one
        with pytest.raises(KeyboardInterrupt):
            train(Breaks(x, 256, after), config, tmp_path / "broken", site=SITE, heldout=heldout, progress=False)
    train_run(tmp_path / "broken", config, x)
    assert files(tmp_path / "whole") == files(tmp_path / "broken")


@pytest.mark.parametrize("arch", ROWS)
def test_both_steps_train_the_same_dictionary(tmp_path: Path, arch: str) -> None:
    losses = []
    for backend in ("numba", "torch"):
        train_run(tmp_path / backend, _config(arch, 10_000, backend=backend))
        losses.append([row["fvu"] for row in rows(tmp_path / backend) if "fvu" in row])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=2e-2, atol=0)
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=1e-3)


@pytest.fixture(scope="module")
def stories(stories_lm: LanguageModel, tinystories_path: Path) -> Tensor:
    """Residual activations of a real model on real text, without the first token of each story."""
    site = Site("resid_post", 2)
    texts = [json.loads(line)["text"] for line in tinystories_path.read_text().splitlines()[:80]]
    acts = [stories_lm.run(stories_lm.encode([text[:900]])[0], read=[site], logits=None)[site][0, 1:] for text in texts]
    return torch.cat(acts).float()


@pytest.mark.parametrize("arch", ROWS)
def test_target_l0_is_met_on_a_real_model(stories: Tensor, tmp_path: Path, arch: str) -> None:
    config = TrainConfig(n_latents=256, arch=arch, l0=12, tokens=200_000, batch_size=256)
    sae = train(Memory(stories[2_000:], 256), config, tmp_path, site=SITE, progress=False)
    quality = reconstruction(sae, [stories[:2_000]])
    assert quality["l0"] == pytest.approx(12, rel=0.1)
    assert quality["fvu"] < 0.25
