"""SAEs by name, on a hub that has faults, and dictionaries that are put there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from saekit.names.site import Site
from tests.kit.hub import Hub
from tests.kit.worker import Answer, Worker

pytestmark = pytest.mark.usefixtures("healthy")

LOAD = """
from saekit.sae import load_from
found = load_from({source!r}{more})
origin, sae = found.origin, found.sae
density = None if found.density_F is None else found.density_F.tolist()
result = [sae.fingerprint(), origin.layout, origin.repository, origin.path, origin.revision, origin.release, density]
"""
EQUAL = """
import torch, sae_lens
from saekit.sae import SAE
x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
ours, theirs = SAE.load({source!r}), sae_lens.SAE.from_pretrained({repository!r}, {path!r})
with torch.no_grad():
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.encode_dense(x), theirs.encode(x), rtol=1e-5, atol=1e-5)
result = ours.fingerprint()
"""
OFFLINE = "import huggingface_hub.constants as c; c.HF_HUB_OFFLINE = {on}"


def load(source: str, more: str = "") -> str:
    return LOAD.format(source=source, more=more)


def _refused(found: Answer, *parts: str) -> None:
    assert found.error == "SAENotFound", found
    for part in parts:
        assert part in f"{found.what} {found.hint}", found


@pytest.fixture(scope="module")
def repository(hub: Hub, random_sae: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A repository with an SAE at its root and in folders, one of another tool among them; fingerprint by path."""
    folder = tmp_path_factory.mktemp("repository")
    found = {}
    for seed, path in enumerate(("", "resid/layer_3", "resid/layer_4")):
        sae = random_sae("jumprelu", 12, 40, seed=seed, site=Site.parse("resid_post.3"), model_name="gpt2")
        sae.save(folder / path, sparsity=torch.full((40,), 0.1))
        found[path] = sae.fingerprint()
    (folder / "dl").mkdir()
    trainer = {"dict_class": "AutoEncoder", "layer": 1, "activation_dim": 12, "dict_size": 40, "lm_name": "gpt2"}
    (folder / "dl/config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}))
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (40, 12), "encoder.bias": (40,), "decoder.weight": (12, 40), "bias": (12,)}
    torch.save({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, folder / "dl/ae.pt")
    found["first"] = hub.add("models", "someone/saes", folder, branch="v1")
    (folder / "README.md").write_text("more")
    found["second"] = hub.add("models", "someone/saes", folder)
    return found


def test_a_repository_by_name(hub: Hub, worker: Worker, repository: dict[str, str]) -> None:
    for path in ("resid/layer_3", ""):
        source = f"someone/saes/{path}".rstrip("/")
        found = worker(load(source)).value
        assert isinstance(found, list), found
        assert found[:6] == [repository[path], "sae_lens", "someone/saes", path or None, repository["second"], None]
        assert found[6] == pytest.approx([0.1] * 40, rel=1e-5)
    assert worker(EQUAL.format(source="someone/saes/resid/layer_3", repository="someone/saes", path="resid/layer_3")).value
    found = worker(load("someone/saes/dl")).value
    assert isinstance(found, list) and found[1:5] == ["dictionary_learning", "someone/saes", "dl", repository["second"]]
    assert not any("layer_4" in line and "resolve" in line for line in hub.log)  # nothing is downloaded that is not asked for


def test_revisions(worker: Worker, repository: dict[str, str]) -> None:
    for source, more in (("someone/saes/resid/layer_3@v1", ""), ("someone/saes/resid/layer_3", ", revision='v1'")):
        found = worker(load(source, more)).value
        assert isinstance(found, list) and found[0] == repository["resid/layer_3"] and found[4] == repository["first"]
    _refused(worker(load("someone/saes@v9")), "The SAE repository someone/saes has no revision 'v9' on the hub.")


def test_what_is_not_there(hub: Hub, worker: Worker, repository: dict[str, str]) -> None:
    _refused(worker(load("nobody/nothing")), "nobody/nothing is neither", "that you can read", "hf auth login")
    _refused(
        worker(load("gpt2-small-resjb/x")),
        "There is no release 'gpt2-small-resjb' in sae-lens's list",
        "Did you mean gpt2-small-res-jb",
    )
    _refused(worker(load("someone/saes/resid/layer_9")), "no folder or file 'resid/layer_9'", "Did you mean resid/layer_")
    found = worker(load("someone/saes/resid"))
    assert found.error == "SAEFormatError" and "Did you mean someone/saes/resid/layer_3?" in found.hint, found


def test_a_gated_repository(hub: Hub, worker: Worker, tmp_path: Path, random_sae: Any) -> None:
    random_sae("topk", 12, 40).save(tmp_path)
    hub.add("models", "someone/gated", tmp_path, gated=True)
    _refused(
        worker(load("someone/gated")),
        "The SAE repository someone/gated is gated on the hub.",
        f"Accept the terms at {hub.url}/someone/gated and log in: `hf auth login`.",
    )


def test_faults_that_pass(hub: Hub, worker: Worker, tmp_path: Path, random_sae: Any) -> None:
    sae = random_sae("topk", 12, 40, seed=5)
    sae.save(tmp_path)
    hub.add("models", "someone/shaky", tmp_path)
    hub.fault("/api/models/someone/shaky", "503", count=2)
    hub.fault("/resolve/.*/cfg.json", "429", count=1)
    found = worker(load("someone/shaky")).value
    assert isinstance(found, list) and found[0] == sae.fingerprint()


def test_without_a_network(hub: Hub, worker: Worker, repository: dict[str, str]) -> None:
    assert worker(load("someone/saes/resid/layer_3")).value  # into the cache
    worker(OFFLINE.format(on=True))
    try:
        found = worker(load("someone/saes/resid/layer_3")).value
        assert isinstance(found, list) and found[0] == repository["resid/layer_3"] and found[4] == repository["second"]
        _refused(worker(load("someone/saes/resid/layer_4")), "is not in the cache, and HF_HUB_OFFLINE is set")
        _refused(worker(load("someone/other")), "is not in the cache, and HF_HUB_OFFLINE is set")
    finally:
        worker(OFFLINE.format(on=False))
    hub.fault("", "reset")
    found = worker(load("someone/saes/resid/layer_3")).value
    assert isinstance(found, list) and found[0] == repository["resid/layer_3"]
    _refused(worker(load("someone/unknown")), "The hub cannot be reached, asked for someone/unknown.")


def test_shapes_that_sae_lens_asks_the_hub_for(hub: Hub, worker: Worker, tmp_path: Path) -> None:
    """Gemma Scope 2: sae-lens reads a part of the file; saekit reads the file that it downloads."""
    folder = tmp_path / "resid_post/layer_5_width_16k_l0_tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt"}')
    shapes = {"w_enc": (12, 40), "w_dec": (40, 12), "b_enc": (40,), "b_dec": (12,), "threshold": (40,)}
    save_file({name: torch.ones(shape) / 7 for name, shape in shapes.items()}, folder / "params.safetensors")
    hub.add("models", "google/gemma-scope-2-1b-pt", tmp_path)
    found = worker(load("google/gemma-scope-2-1b-pt/resid_post/layer_5_width_16k_l0_tiny")).value
    assert isinstance(found, list) and found[1:3] == ["gemma_scope_2", "google/gemma-scope-2-1b-pt"]
