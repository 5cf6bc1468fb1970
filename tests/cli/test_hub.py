"""The command line on names of the hub, which moves and fails in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.hub import Hub
from tests.kit.worker import Worker

pytestmark = pytest.mark.usefixtures("healthy")

RUN = "from tests.kit.commands import here; done = here(*{args!r}); result = [done.status, done.stdout, done.stderr]"


def run(worker: Worker, *args: object) -> tuple[int, str, str, str]:
    answer = worker(RUN.format(args=tuple(map(str, args))))
    assert isinstance(answer.value, list), answer
    status, stdout, stderr = answer.value
    return status, stdout, stderr, answer.log


def words(n: int) -> dict[str, bytes]:
    rows = [{"text": f"Once upon a time there was a dog called Max, number {k}. He liked to run."} for k in range(n)]
    return {"train.jsonl": "\n".join(map(json.dumps, rows)).encode()}


def test_a_workspace_keeps_the_commits_that_it_was_made_from(
    hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load, save

    model = hub.add("models", "someone/stories", stories_path)
    data = hub.add("datasets", "someone/words", words(60))
    sizes = ("--tokens", 1000, "--train-tokens", 2000, "--latents", 32, "--l0", 4)
    command = ("fit", "someone/stories", "--data", "someone/words", *sizes, "--device", "cpu", "--out", tmp_path / "ws")
    status, _, stderr, _ = run(worker, *command)
    assert status == 0, stderr
    facts = json.loads((tmp_path / "ws" / "activations" / "manifest.json").read_text())["provenance"]
    assert (facts["model"]["revision"], facts["corpus"]["revision"], facts["bos"]) == (model, data, True)
    record = json.loads((tmp_path / "ws" / "sae" / "resid_post.2" / "cfg.json").read_text())["metadata"]
    assert record["model_loading"] == {"revision": model} and record["prepend_bos"] is True

    weights = {name: 1.5 * value for name, value in load((stories_path / "model.safetensors").read_bytes()).items()}
    files = hub.files("models", "someone/stories") | {"model.safetensors": save(weights, {"format": "pt"})}
    moved = hub.add("models", "someone/stories", files)
    hub.add("datasets", "someone/words", words(10))
    said = f"has moved on the hub to commit {moved[:8]}; this workspace keeps commit {model[:8]}"
    for again in (command, ("steer", tmp_path / "ws", "Once", "--feature", 3, "--max-new-tokens", 2)):
        status, _, stderr, log = run(worker, *again)
        assert status == 0, stderr
        assert said in stderr + log

    hub.fault("", "reset")
    status, _, stderr, _ = run(worker, *command)
    assert status == 0, stderr


def test_resuming_without_a_network_names_the_hub(hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path) -> None:
    hub.add("models", "other/stories", stories_path)
    hub.add("datasets", "other/words", words(60))
    command = ("cache", "other/stories", "--data", "other/words", "--site", "resid_post.2", "--device", "cpu")
    more = ("--tokens", 1000, "--out", tmp_path / "ws")
    status, _, stderr, _ = run(worker, *command, *more)
    assert status == 0, stderr
    manifest = tmp_path / "ws" / "activations" / "manifest.json"
    (tmp_path / "ws" / "activations" / "shard-00000.h5").unlink()
    assert manifest.exists()
    hub.fault("", "reset")
    status, _, stderr, _ = run(worker, *command, *more)
    assert status == 2
    assert "other/words" in stderr and "hub cannot be reached" in stderr and "configuration" not in stderr


def test_refusals_name_the_option(hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path) -> None:
    hub.add("models", "third/gated", stories_path, gated=True)
    status, _, stderr, _ = run(worker, "cache", "third/gated", "--out", tmp_path / "ws")
    assert status == 2 and not (tmp_path / "ws").exists()
    assert "third/gated is gated on the hub" in stderr and f"Accept the terms at {hub.url}/third/gated" in stderr
    hub.add("models", "third/stories", stories_path)
    hub.add("datasets", "third/words", words(5))
    command = ("cache", "third/stories", "--data", "third/words", "--site", "embed", "--data-revision", "v7")
    status, _, stderr, _ = run(worker, *command, "--out", tmp_path / "ws")
    assert status == 2 and "third/words has no revision 'v7' on the hub" in stderr


def test_a_published_sae_by_name(hub: Hub, worker: Worker, stories_path: Path, tmp_path: Path) -> None:
    """The whole job without training, and the same SAE added to a workspace: the commit that it is from is recorded."""
    import torch

    from saekit.sae import SAE, SAEConfig

    generator = torch.Generator().manual_seed(0)
    cfg = SAEConfig(
        "topk", 64, 48, k=4, site_map="resid_post.2", model_name="third/stories", context_size=32, prepend_bos=True,
        metadata={"dataset_path": "third/words"},
    )  # fmt: skip
    sae = SAE(cfg, {name: torch.randn(shape, generator=generator) / 8 for name, shape in cfg.shapes().items()})
    sae.save(tmp_path / "own" / "layer2")
    commit = hub.add("models", "third/saes", tmp_path / "own")
    hub.add("models", "third/stories", stories_path)
    hub.add("datasets", "third/words", words(60))
    ws = tmp_path / "ws"
    command = ("fit", "third/stories", "--sae", "third/saes/layer2", "--tokens", 1000, "--out", ws, "--json")
    status, stdout, stderr, _ = run(worker, *command)
    assert status == 0, stderr
    assert json.loads(stdout)["sites"]["resid_post.2"]["fvu"] > 0
    facts = json.loads((ws / "activations" / "manifest.json").read_text())["provenance"]
    assert (facts["context"], facts["bos"], facts["corpus"]["source"]) == (32, True, "third/words")
    status, stdout, stderr, _ = run(worker, "add", ws, "third/saes", "--id", "layer2", "--name", "again", "--json")
    assert status == 0 and json.loads(stdout)["warnings"] == [], stderr
    for folder in (ws / "sae" / "resid_post.2", ws / "sae" / "resid_post.2" / "again"):
        source = json.loads((folder / "source.json").read_text())
        assert (source["source"], source["repository"], source["revision"]) == ("third/saes/layer2", "third/saes", commit)
        assert SAE.load(folder).fingerprint() == sae.fingerprint() == source["fingerprint"]
    status, stdout, stderr, _ = run(worker, "add", ws, "third/saes", "--id", "layer3", "--name", "other", "--json")
    assert status == 2 and "layer3" in json.loads(stdout)["message"] and not (ws / "sae" / "resid_post.2" / "other").exists()

    before = sae.fingerprint()
    with torch.no_grad():
        sae.W_dec.mul_(2)
    sae.save(tmp_path / "own" / "layer2")
    hub.add("models", "third/saes", tmp_path / "own")  # the same command takes the commit that it took before
    status, stdout, stderr, _ = run(worker, *command)
    assert status == 0 and SAE.load(ws / "sae" / "resid_post.2").fingerprint() == before != sae.fingerprint(), stderr
    status, stdout, _, _ = run(worker, "add", ws, "third/saes/layer2", "--json")
    assert status == 2 and "--name" in json.loads(stdout)["hint"]
