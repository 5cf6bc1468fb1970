"""Training straight out of the model, in a workspace that caches only the beginning of its corpus."""

from __future__ import annotations

import json
import random
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from saekit.activations import LiveActivations, LiveStore, ReadOptions, StoredData
from saekit.errors import ConfigError, StoreMismatch
from saekit.sae import SAE
from saekit.workspace.workspace import Workspace
from tests.cli.test_interrupted import files_of, killed_in_time
from tests.kit.commands import Saekit
from tests.kit.tiny import make_lm
from trainers import TrainConfig, train

SITE = "resid_post.2"
SETTINGS = ("--site", SITE, "--latents", 192, "--k", 8, "--train-tokens", 60_000, "--batch-size", 256, "--name", "live", "--live")


@pytest.fixture(scope="module")
def trained(saekit: Saekit, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workspace with a live dictionary in it."""
    folder = tmp_path_factory.mktemp("live") / "ws"
    shutil.copytree(workspace, folder)
    outcome = saekit("train", folder, *SETTINGS, "--json")
    assert outcome.status == 0, outcome.stderr
    return folder


def test_it_is_what_the_model_gives_when_it_is_asked_directly(trained: Path, tmp_path: Path) -> None:
    ws = Workspace.open(trained)
    found = ws.sae(SITE, "live")
    settings = json.loads((trained / "sae" / SITE / "live" / "train.json").read_text())
    assert settings["data"]["live"] is True
    context = ws.store().context
    layout = {"context": context, "contexts": 8192 // context, "buffer_tokens": 60_000}  # as many as are trained on
    source = LiveActivations(ws.lm, [SITE], ws.corpus, batch_size=256, **layout)
    sae = train(source, TrainConfig.from_dict(settings["config"]), tmp_path, site=SITE, lm=ws.lm, progress=False)
    assert sae.fingerprint() == found.fingerprint()
    assert SAE.load(tmp_path).fingerprint() == found.fingerprint()


def test_rows_to_train_on_go_beyond_the_cache_and_the_held_out_ones_are_the_same(trained: Path) -> None:
    ws = Workspace.open(trained)
    store = LiveStore(ws.store(), ws.lm, ws.corpus)
    order, options, sites = store.order(0, 0.05, 10**6), ReadOptions(batch_size=512), [ws.lm.site(SITE)]
    live, cached = (each.reader(sites, "train", order, options) for each in (store, StoredData(ws.store())))
    assert live.n_tokens > 3 * cached.n_tokens
    for one, other in zip(*(each.reader(sites, "heldout", order, options) for each in (store, StoredData(ws.store())))):
        assert all(torch.equal(one[site], other[site]) for site in one)


def test_held_out_documents_are_measured_on_and_it_is_told_from_a_cached_one(saekit: Saekit, trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "sae" / SITE / "live" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["heldout/fvu"] < 0.5
    measured = saekit("eval", trained, "--site", SITE, "--name", "live", "--json")
    assert measured.status == 0, measured.stderr
    again = saekit("train", trained, *SETTINGS[:-1])
    assert again.status == 2
    assert "live was yes and is no now" in again.stderr.replace("\n", " ")


def test_another_corpus_and_a_second_model_are_refused(trained: Path, tmp_path: Path) -> None:
    ws = Workspace.open(trained)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Once upon a time there was a cat."}\n')
    with pytest.raises(StoreMismatch, match="another corpus"):
        LiveStore(ws.store(), ws.lm, type(ws.corpus).open(other))
    with pytest.raises(ConfigError, match="one model"):
        ws.train_all([], other=ws, live=True)
    with pytest.raises(StoreMismatch, match="model"):
        LiveStore(ws.store(), make_lm(), ws.corpus)


def test_a_data_set_on_the_hub_stays_what_it_was_when_it_was_cached(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ws"
    shutil.copytree(trained, folder)
    manifest, study = folder / "activations" / "manifest.json", folder / "saekit.toml"
    content = json.loads(manifest.read_text())
    content["provenance"]["corpus"] = {
        "source": "a/b",
        "hub": "a/b",
        "split": "train",
        "revision": "0123abc" + "0" * 33,
        "text_field": "text",
    }
    content.pop("checksum")
    manifest.write_text(json.dumps(content))
    study.write_text(re.sub(r"(?m)^data = .*$", 'data = "a/b"', study.read_text()).replace("shuffle_seed = 0\n", ""))
    asked: list[str | None] = []

    def offline(api: object, repo: str, revision: str | None = None) -> None:
        asked.append(revision)
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    ws = Workspace.open(folder)
    LiveStore(ws.store(), ws.lm, ws.corpus)
    assert asked == [], "a commit needs no question to the hub"


def test_as_many_tokens_as_for_endless_data_are_the_default(workspace: Path) -> None:
    ws = Workspace.open(workspace)
    (plan,) = ws.plans({"site": SITE, "latents": 4096})
    store = LiveStore(ws.store(), ws.lm, ws.corpus)
    assert plan.resolve(store).config.tokens == TrainConfig(n_latents=4096).resolve(64).tokens
    assert plan.resolve(ws.store()).config.tokens == 4_000_000


SWEEP = """
latents: 128
l0: 8
tokens: 20_000
batch_size: 256
runs:
  - {site: resid_post.1, arch: topk}
  - {site: mlp_in.1->mlp_out.1, arch: gated}
"""


def test_fit_and_a_sweep_over_transcoders(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path) -> None:
    """Documents one to a context, in bfloat16: what the store has is trained on live as well, one run as in the sweep."""
    folder, file, sites = tmp_path / "ws", tmp_path / "sweep.yaml", ("mlp_in.1->mlp_out.1", "resid_post.1")
    file.write_text(SWEEP)
    common = ("--live", "--latents", 128, "--k", 8, "--train-tokens", 20_000, "--batch-size", 256)
    outcome = saekit(
        *("fit", stories_path, "--data", tinystories_path, "--site", sites[0], "--site", sites[1], "--tokens", 10_000, *common),
        *("--packing", "document", "--store-dtype", "bfloat16", "--out", folder, "--json"),
    )
    assert outcome.status == 0, outcome.stderr
    trained = {path.parent.name: json.loads(path.read_text())["data"] for path in folder.glob("sae/*/train.json")}
    assert len(trained) == 2 and all(data["live"] for data in trained.values())
    swept = saekit("train", folder, "--sweep", file, "--live", "--json")
    assert swept.status == 0, swept.stderr
    assert len(swept.json["dictionaries"]) == 2
    name = next(each["name"] for each in swept.json["dictionaries"] if "topk" in each["name"])
    ws = Workspace.open(folder)
    assert ws.sae("resid_post.1", name).fingerprint() == ws.sae("resid_post.1").fingerprint()
    both = saekit("train", folder, "--site", "mlp_out.1+resid_post.1", *common, "--json")
    assert both.status == 0, both.stderr


@pytest.mark.timeout(600)
def test_killed_at_random_moments_it_ends_in_the_same(saekit: Saekit, workspace: Path, trained: Path, tmp_path: Path) -> None:
    folder, moments, killed = tmp_path / "killed", random.Random(2), 0
    shutil.copytree(workspace, folder)
    arguments = ("train", folder, *SETTINGS, "--checkpoint-tokens", 2_000)
    checkpoints = folder / "sae" / SITE / "live" / "checkpoints"
    for _ in range(2):
        another = partial(_another, checkpoints, set(checkpoints.glob("step-*")))
        killed += killed_in_time(arguments, another, 0.1, moments)
    assert killed
    outcome = saekit(*arguments)
    assert outcome.status == 0, outcome.stderr
    name = f"sae/{SITE}/live/sae_weights.safetensors"
    assert files_of(folder)[name] == files_of(trained)[name]


def _another(checkpoints: Path, known: set[Path]) -> bool:
    return bool(set(checkpoints.glob("step-*")) - known)
