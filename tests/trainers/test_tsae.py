"""T-SAE: pairs of neighbouring tokens, loss and gradient against dense float64, files, resuming, and smoother codes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from saekit.activations import ActivationReader, Corpus, LiveActivations, StoredActivations, write_store
from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.sae import SAE
from saekit.sae.metrics import reconstruction
from tests.kit import dense
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, Breaks, D, F, files, rows, sparse_data
from tests.kit.tiny import make_documents, make_lm
from trainers import TrainConfig, train
from trainers.objectives.base import Now
from trainers.objectives.tsae import TSAE
from trainers.step.parameters import Parameters

PLACE = Site("resid_post", 0)


def _config(**settings: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, arch="tsae", **settings)


def _expected(config: TrainConfig, dead: Tensor) -> dense.Loss:
    """The loss of the docstring of the module, dense."""
    H, n = round(config.high_level * config.n_latents), config.n_latents

    def loss(p: Parameters, x: Tensor, y: Tensor) -> Tensor:
        B = len(x)
        x = torch.cat([x[:, 0], x[:, 1]])
        h = dense.pre(p, x)
        f = dense.batchtopk(h, config.l0)
        levels = [dense.fvu(p, torch.where(torch.arange(n) < end, f, 0), x) for end in (H, n)]
        z, before = (normalize(each[:, :H], dim=1) for each in (f[:B], f[B:]))
        logits = z @ before.T / 0.1
        target = torch.arange(B)
        contrast = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2 / math.log(B)
        return torch.stack(levels).mean() + config.contrastive * contrast + dense.auxk(p, h, f, x, dead, config)

    return loss


@pytest.mark.parametrize("path", dense.PATHS)
@pytest.mark.parametrize(("seed", "n_dead", "block"), [(0, 20, 1 << 22), (1, 0, 100), (2, 60, 100)])
def test_gradients_are_those_of_dense_float64(
    path: str, seed: int, n_dead: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.objectives.tsae._BLOCK", block)
    B, width, n = 30, 18, 90
    config = dense.config(n, width, 7, "tsae", aux_k=9, high_level=0.3, contrastive=0.7)
    p = dense.random_parameters(n, width, seed)
    x = dense.data(seed + 5, B, 2, width)
    x[:, 1] = 0.6 * x[:, 0] + 0.4 * x[:, 1]
    dead = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:n_dead].sort().values
    it = dense.made(dataclasses.replace(config, screen="screened" in path if path != "torch" else None), width)
    assert isinstance(it, TSAE)
    now = Now(0.5, dead)
    expected_value, expected = dense.gradient(_expected(config, dead), p, x, x)
    if path == "torch":
        leaves = p.map(lambda tensor: tensor.detach().requires_grad_())
        outcome = it.loss(leaves, x, x, now)
        assert isinstance(outcome.loss, Tensor)
        found = Parameters(zip(leaves, torch.autograd.grad(outcome.loss, list(leaves.values()))))
        value = outcome.loss.item()
    else:
        outcome, sparse = it.gradient(p, x, x, now)
        value, found = float(outcome.loss), sparse.dense(p)
    assert value == pytest.approx(expected_value, rel=1e-5)
    for name, tensor in expected.items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(found[name].double(), tensor, atol=2e-5 * scale, rtol=1e-4, msg=name)
    without = dense.gradient(_expected(dataclasses.replace(config, contrastive=0.0), dead), p, x, x)[1]
    assert (without.W_enc_FD - expected.W_enc_FD).abs().max() > 1e-3 * expected.W_enc_FD.abs().max()


@pytest.fixture(scope="module")
def tiny() -> tuple[LanguageModel, Corpus]:
    return make_lm(), Corpus.open(make_documents(300, seed=3))


@pytest.fixture(scope="module")
def store(tiny: tuple[LanguageModel, Corpus], tmp_path_factory: pytest.TempPathFactory) -> StoredActivations:
    return write_store(tmp_path_factory.mktemp("store"), tiny[0], [PLACE], tiny[1], n_tokens=5_000, context=24, progress=False)


def _neighbours(store: StoredActivations, heldout: float) -> dict[bytes, set[bytes]]:
    """The row before each row of the store that may begin a pair, row by row."""
    from saekit.activations import is_heldout

    found: dict[bytes, set[bytes]] = {}
    for shard in range(len(store.shard_rows)):
        names = ["document", "special", "position", f"sites/{PLACE}"]
        document, special, position, acts = store.columns(shard, names)
        for n in range(1, len(document)):
            same = document[n] == document[n - 1] and position[n] == position[n - 1] + 1
            usable = not special[n] and not special[n - 1] and not is_heldout(document[n : n + 1], heldout)[0]
            if same and usable:
                found.setdefault(acts[n].tobytes(), set()).add(acts[n - 1].tobytes())
    return found


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_stored_pairs_are_of_neighbouring_tokens(store: StoredActivations, memory: int) -> None:
    reader = ActivationReader(store, [PLACE], batch_size=64, epochs=1, pairs=True, memory=memory, heldout=0.2, buffer_tokens=700)
    truth, count = _neighbours(store, 0.2), 0
    for batch in reader:
        pairs = batch[PLACE]
        assert pairs.shape[1:] == (2, 16)
        count += len(pairs)
        for now, before in pairs.numpy():
            assert before.tobytes() in truth[now.tobytes()]
    # All of them but those at the borders of the pieces of 1024 rows that are read together.
    total = _count(store, 0.2)
    assert count == reader.n_tokens and total - 5 <= count <= total


def _count(store: StoredActivations, heldout: float) -> int:
    from saekit.activations import is_heldout

    total = 0
    for shard in range(len(store.shard_rows)):
        document, special, position = store.columns(shard, ["document", "special", "position"])
        good = ~special & ~is_heldout(document, heldout)
        total += int((good[1:] & good[:-1] & (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1)).sum())
    return total


def test_live_pairs_are_those_of_a_store(tiny: tuple[LanguageModel, Corpus], store: StoredActivations) -> None:
    source = LiveActivations(
        *(tiny[0], [PLACE], tiny[1]),
        n_tokens=5_000,
        context=24,
        batch_size=64,
        epochs=1,
        pairs=True,
        heldout=0.2,
        buffer_tokens=700,
    )
    truth, count = _neighbours(store, 0.2), 0
    for batch in source:
        for now, before in batch[PLACE].numpy():
            assert before.tobytes() in truth[now.tobytes()]
        count += len(batch[PLACE])
    assert count == source.n_tokens == _count(store, 0.2)


def test_it_trains_on_a_store_and_resumes_exactly(tmp_path: Path, store: StoredActivations) -> None:
    config = TrainConfig(64, "tsae", l0=4, tokens=4_000, batch_size=128, sample_tokens=500, checkpoint_tokens=1_000)
    whole = train(store, config, tmp_path / "whole", site=PLACE, progress=False)
    assert whole.cfg.architecture == "tsae"
    x = sparse_data(5_000)
    for name in ("numba", "torch"):
        config = _config(tokens=8_000, checkpoint_tokens=2_000, dead_tokens=900, backend=name)
        sources = [Memory(x, 256), Breaks(x, 256, 17), Memory(x, 256)]
        for source, out in zip(sources, ("whole", "broken", "broken")):
            source.pairs = True
            try:
                train(source, config, tmp_path / name / out, site=SITE, progress=False)
            except KeyboardInterrupt:
                assert out == "broken"
        assert files(tmp_path / name / "whole") == files(tmp_path / name / "broken")
    logged = [row for row in rows(tmp_path / "numba" / "whole") if "l0" in row]
    assert logged[-1]["l0"] == pytest.approx(4, rel=0.1)


def test_sae_lens_reads_the_folder_with_equal_outputs(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    source = Memory(sparse_data(10_000), 256)
    source.pairs = True
    ours = train(source, _config(tokens=40_000, lr=3e-3), tmp_path, site=SITE, progress=False)
    theirs, x = sae_lens.SAE.load_from_disk(str(tmp_path)), sparse_data(200, seed=2)
    assert SAE.load(tmp_path).cfg.architecture == "tsae"
    torch.testing.assert_close(ours.encode_dense(x), theirs.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert reconstruction(ours, [x])["l0"] == pytest.approx(4, rel=0.15)


def slow_and_fast(n: int, seed: int = 0) -> Tensor:
    """Two of 30 directions that stay for about 30 rows, and two of 30 others that change from row to row."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(60, D, generator=torch.Generator().manual_seed(99)), dim=1)
    slow = torch.rand(n // 30 + 1, 30, generator=generator).topk(2, dim=1).indices.repeat_interleave(30, 0)[:n]
    fast = 30 + torch.rand(n, 30, generator=generator).topk(2, dim=1).indices
    strength = 1 + torch.rand(n, 4, generator=generator)
    return (directions[torch.cat([slow, fast], 1)] * strength[..., None]).sum(1) + 2


def smoothness(sae: SAE, x: Tensor) -> float:
    """Mean cosine of the high-level codes of neighbouring rows."""
    z = normalize(sae.encode_dense(x)[:, : round(0.2 * sae.cfg.n_latents)], dim=1)
    return float((z[1:] * z[:-1]).sum(1).mean())


def test_high_level_codes_become_smooth_and_the_reconstruction_stays(tmp_path: Path) -> None:
    found = {}
    for contrast in (0.0, 0.1):
        source = Memory(slow_and_fast(30_000), 256)
        source.pairs = True
        config = _config(tokens=150_000, lr=3e-3, contrastive=contrast)
        sae = train(source, config, tmp_path / str(contrast), site=SITE, progress=False)
        y = slow_and_fast(3_000, seed=1)
        found[contrast] = smoothness(sae, y), reconstruction(sae, [y])["fvu"]
    assert found[0.1][0] > found[0.0][0] + 0.1
    assert found[0.1][1] < found[0.0][1] * 1.2


def test_refusals(tmp_path: Path) -> None:
    x = Memory(sparse_data(500), 256)
    with pytest.raises(ConfigError, match="is trained on pairs of neighbouring tokens, and these data are rows"):
        train(x, _config(), tmp_path, site=SITE, progress=False)
    with pytest.raises(ConfigError, match="tsae cannot be trained as a transcoder"):
        train(x, _config(), tmp_path, site=SITE, site_out="mlp_out.0", progress=False)
    with pytest.raises(ConfigError, match=r"contrastive=-1.0 is impossible. 0 turns the contrastive loss off"):
        TrainConfig(F, contrastive=-1.0)
    with pytest.raises(ConfigError, match="not end to end"):
        train(x, _config(end_to_end="kl"), tmp_path, site=SITE, progress=False)
    assert not list(tmp_path.iterdir())
