"""Dictionaries of other tools and of other architectures in a workspace: what works with our own works with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.sae import SAE
from saekit.workspace import Workspace
from tests.kit.commands import here, in_new_process

SITE, D, F = "resid_post.2", 192, 64


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "ws"
    outcome = here("cache", "lab", "--site", SITE, "--data", "lab", "--tokens", 2000, "--out", folder)
    assert outcome.status == 0, outcome.stderr
    return folder


def _dictionary_learning(folder: Path) -> Path:
    """As dictionary_learning writes a BatchTopK SAE."""
    trainer = {"dict_class": "BatchTopKSAE", "layer": 2, "activation_dim": D, "dict_size": F, "lm_name": "lab", "k": 8}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 256}}))
    rows = torch.nn.functional.normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(0)), dim=-1)
    state = {"encoder.weight": rows, "decoder.weight": rows.T.contiguous(), "encoder.bias": torch.zeros(F)}
    torch.save(state | {"b_dec": torch.zeros(D), "k": torch.tensor(8), "threshold": torch.tensor(1.0)}, folder / "ae.pt")
    return folder


def _of_sae_lens(folder: Path, architecture: str, **cfg: Any) -> Path:
    import sae_lens

    metadata = {"hook_name": "blocks.2.hook_resid_post", "model_name": "lab", "context_size": 256}
    theirs = sae_lens.SAE.from_dict({"architecture": architecture, "d_in": D, "d_sae": F, "metadata": metadata, **cfg})
    rows = torch.randn(F, D, generator=torch.Generator().manual_seed(0))
    theirs.W_dec.data = torch.nn.functional.normalize(rows, dim=-1)
    theirs.save_model(folder)
    return folder


@pytest.mark.parametrize("kind", ["dictionary_learning", "matching_pursuit"])
def test_every_step(kind: str, cached: Path, tmp_path: Path) -> None:
    made = {
        "dictionary_learning": lambda: _dictionary_learning(tmp_path / "dl"),
        "matching_pursuit": lambda: _of_sae_lens(tmp_path / "mp", "matching_pursuit", max_iterations=8),
    }
    source = made[kind]()
    named = ("--name", kind)
    for words in (
        ("add", cached, source, *named),
        ("eval", cached, "--site", SITE, *named),
        ("index", cached, "--site", SITE, *named),
        ("report", cached, "--site", SITE, *named),
        ("push", cached, "someone/saes", "--site", SITE, *named, "--folder", tmp_path / "look"),
    ):
        outcome = here(*words)
        assert outcome.status == 0, (words[0], outcome.stderr)
    steered = here("steer", cached, "--feature", f"{SITE}@{kind}/7", "Once upon a time", "--max-new-tokens", 4, "--json")
    assert steered.status == 0, steered.stderr
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    there, before = Workspace.open(cached).sae(SITE, kind), SAE.load(source)
    assert torch.equal(there(x), before(x)) and there.origin == before.origin
    pushed = SAE.load(tmp_path / "look" / SITE / kind)
    assert torch.equal(pushed(x), before(x))
    training = {"dictionary_learning": "| data | monology/pile-uncopyrighted |", "matching_pursuit": "trained elsewhere"}[kind]
    assert training in (tmp_path / "look/README.md").read_text()


PLUGIN = """
import json
import torch
from saekit.sae.foreign import LAYOUTS, Layout
from saekit.sae.foreign.requests import folder

def loader(download):
    def convert(repo_id, folder_name, device="cpu", force_download=False, cfg_overrides=None):
        rows = torch.tensor(json.load(open(download(repo_id, "mine.json", subfolder=folder_name))))
        cfg = {"architecture": "standard", "d_in": rows.shape[1], "d_sae": rows.shape[0], "dtype": "float32", "device": device}
        metadata = {"hook_name": "blocks.2.hook_resid_post", "sae_lens_version": "6.0.0"}
        tensors = {"W_enc": rows.T, "W_dec": rows, "b_enc": torch.zeros(len(rows)), "b_dec": torch.zeros(rows.shape[1])}
        return cfg | {"metadata": metadata}, tensors, None
    return convert

LAYOUTS.register("mine", Layout("mine (mine.json)", ("mine.json",), "my_layout:loader", "my_layout:request"))

def request(place, loader):
    return folder(place, loader)
"""


def test_a_layout_from_a_plugin(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_layout.py").write_text(PLUGIN)
    (tmp_path / "sae").mkdir()
    rows = torch.randn(F, D, generator=torch.Generator().manual_seed(0))
    (tmp_path / "sae/mine.json").write_text(json.dumps(rows.tolist()))
    refused = here("add", cached, tmp_path / "sae", "--name", "mine", "--json")
    assert refused.status == 2 and "holds no SAE that saekit knows: it holds mine.json" in refused.json["message"]
    monkeypatch.setenv("SAEKIT_PLUGINS", str(tmp_path / "my_layout.py"))
    outcome = in_new_process("add", cached, tmp_path / "sae", "--name", "mine", "--json")
    assert outcome.status == 0, outcome.stderr
    added = Workspace.open(cached).sae(SITE, "mine")
    assert added.origin.layout == "mine" and torch.equal(added.W_dec, rows)


def test_a_temporal_sae_is_refused_before_anything_is_written(cached: Path, tmp_path: Path) -> None:
    source = _of_sae_lens(tmp_path / "temporal", "temporal", n_heads=2, bottleneck_factor=4, kval_topk=5)
    outcome = here("add", cached, source, "--name", "temporal", "--json")
    assert outcome.status == 2 and "reads whole contexts" in outcome.json["message"]
    assert not (cached / "sae" / SITE / "temporal").exists()
