"""Dictionaries that are put on the hub, tried against a stand-in of it: what was put there loads again by name."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from saekit.errors import ConfigError, WorkspaceError
from saekit.sae import SAE
from saekit.sae.upload import Target
from saekit.workspace import Workspace, publishing
from tests.kit.commands import here
from tests.kit.hub import Hub
from tests.kit.worker import Worker

pytestmark = pytest.mark.usefixtures("healthy")

PUSH = "from tests.kit.commands import here; found = here('push', {words}); result = [found.status, found.stdout, found.stderr]"
SITE = "resid_post.2"
LOAD = """
import torch, sae_lens
from saekit.sae import SAE
x = torch.randn(9, {width}, generator=torch.Generator().manual_seed(0))
ours, theirs, first = SAE.load({source!r}), sae_lens.SAE.from_pretrained({repository!r}, {path!r}), SAE.load({folder!r})
with torch.no_grad():
    for each in (theirs(x), first(x)):
        torch.testing.assert_close(ours(x), each, rtol=1e-5, atol=1e-5)
    for each in (theirs.encode(x), first.encode_dense(x)):
        torch.testing.assert_close(ours.encode_dense(x), each, rtol=1e-5, atol=1e-5)
result = [ours.origin.repository, ours.origin.revision, theirs.cfg.metadata.hook_name]
"""


@pytest.fixture(scope="module")
def worker(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    home = tmp_path_factory.mktemp("home")
    with Worker(hub.environment(home, HF_TOKEN="hf_of_someone"), home / "log") as process:
        yield process


def _push(worker: Worker, *words: object) -> list[Any]:
    found = worker(PUSH.format(words=", ".join(repr(str(word)) for word in words)))
    assert isinstance(found.value, list), found
    return found.value


def _metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_a_dry_run_writes_the_folder(old_workspace: Path, tmp_path: Path) -> None:
    words = ("--site", SITE, "--license", "apache-2.0", "--folder", tmp_path / "look", "--json")
    outcome = here("push", old_workspace, "someone/saes", *words)
    assert outcome.status == 0, outcome.stderr
    facts = outcome.json
    assert (facts["path"], facts["site"]) == (SITE, SITE)
    files = {path.relative_to(tmp_path / "look").as_posix() for path in (tmp_path / "look").rglob("*") if path.is_file()}
    assert {"README.md", *(f"{SITE}/{name}" for name in ("README.md", "cfg.json", "sae_weights.safetensors"))} <= files
    card = (tmp_path / "look/README.md").read_text()
    assert card == (tmp_path / "look" / SITE / "README.md").read_text()
    metadata = _metadata(card)
    assert metadata["library_name"] == "saelens" and metadata["license"] == "apache-2.0" and "saelens" in metadata["tags"]
    assert "base_model" not in metadata and "datasets" not in metadata  # the laboratory is not on the hub
    for part in ('SAE.load("someone/saes/resid_post.2")', 'SAE.from_pretrained("someone/saes", "resid_post.2")', "saekit train"):
        assert part in card
    before, after = Workspace.open(old_workspace).sae(SITE), SAE.load(tmp_path / "look" / SITE)
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    again = here("push", old_workspace, "someone/saes", *words)
    assert again.status == 2 and "is not empty" in again.json["message"]


def test_what_was_put_there_loads_again(hub: Hub, worker: Worker, old_workspace: Path) -> None:
    status, out, err = _push(worker, old_workspace, "someone/new", "--site", SITE, "--private", "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert facts["repository"] == "someone/new" and not facts["card_kept"]
    assert hub.repositories["models", "someone/new"].private
    assert facts["address"] == f"{hub.url}/someone/new/tree/main/{SITE}"
    width = Workspace.open(old_workspace).sae(SITE).cfg.d_in
    folder = str(Workspace.open(old_workspace).dictionaries.folder(SITE))
    loaded = worker(LOAD.format(width=width, source=f"someone/new/{SITE}", repository="someone/new", path=SITE, folder=folder))
    assert loaded.value == ["someone/new", facts["commit"], "blocks.2.hook_resid_post"], loaded

    # A second push leaves a card that people may have edited, and the other files, as they are.
    hub.add("models", "someone/new", {**hub.files("models", "someone/new"), "README.md": b"mine", "other": b"x"})
    status, out, err = _push(worker, old_workspace, "someone/new", "--site", SITE, "--path", "again/here", "--json")
    assert status == 0 and json.loads(out)["card_kept"], err
    files = hub.files("models", "someone/new")
    assert files["README.md"] == b"mine" and files["other"] == b"x" and f"{SITE}/cfg.json" in files
    assert "again/here/cfg.json" in files and b"sae_lens" in files["again/here/README.md"]


def test_a_branch(hub: Hub, worker: Worker, old_workspace: Path) -> None:
    hub.add("models", "someone/branches", {"README.md": b"main"})
    status, _, err = _push(worker, old_workspace, "someone/branches", "--site", SITE, "--branch", "v2")
    assert status == 0, err
    assert set(hub.files("models", "someone/branches")) == {"README.md"}
    files = hub.files("models", "someone/branches", "v2")
    assert files["README.md"] == b"main" and b"snapshot_download" in files[f"{SITE}/README.md"]
    code = f"from saekit.sae import SAE; result = SAE.load('someone/branches/{SITE}@v2').cfg.n_latents"
    assert worker(code).value == Workspace.open(old_workspace).sae(SITE).cfg.n_latents


def test_what_the_hub_refuses(hub: Hub, worker: Worker, old_workspace: Path) -> None:
    hub.add("models", "someone/public", {"README.md": b""})
    status, out, _ = _push(worker, old_workspace, "someone/public", "--site", SITE, "--private", "--json")
    assert status == 2 and json.loads(out) == {
        "error": "PushError",
        "message": "someone/public is public.",
        "hint": "Leave --private out, or choose another repository.",
    }
    assert set(hub.files("models", "someone/public")) == {"README.md"}
    for action, message in (
        ("403", "The token may not write to other/saes on the hub (403)."),
        ("401", "The hub does not accept the token (401), asked for other/saes."),
        ("reset", "The hub cannot be reached, asked for other/saes."),
    ):
        hub.heal()
        hub.fault("/api/repos/create", action)  # type: ignore[arg-type]
        status, out, _ = _push(worker, old_workspace, "other/saes", "--site", SITE, "--json")
        found = json.loads(out)
        assert (status, found["error"], found["message"]) == (2, "PushError", message)
        assert found["hint"]
    hub.heal()
    hub.fault("/commit/", "403")
    status, out, _ = _push(worker, old_workspace, "other/saes", "--site", SITE, "--json")
    assert status == 2 and "may not write to other/saes" in json.loads(out)["message"]


def test_nobody_is_logged_in(worker: Worker, old_workspace: Path) -> None:
    code = "import os; token = os.environ.pop('HF_TOKEN'); from saekit.sae.upload import *; from pathlib import Path\n"
    code += "try:\n    upload(Path('.'), Target('a/b', 'c'), 'm')\nfinally:\n    os.environ['HF_TOKEN'] = token"
    found = worker(code)
    assert (found.error, found.what) == ("PushError", "Nobody is logged in to the hub.") and "hf auth login" in found.hint


def test_it_is_never_needed_offline(old_workspace: Path) -> None:
    outcome = here("push", old_workspace, "someone/saes", "--site", SITE)
    assert outcome.status == 2 and "HF_HUB_OFFLINE is set, so that nothing is sent" in outcome.stderr


@pytest.mark.parametrize("path", ["", "/x", "../x", "a/../b", "a//b", "."])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(ConfigError, match="no folder in a repository"):
        Target("someone/saes", path)
    with pytest.raises(ConfigError, match="cannot be the name of a repository"):
        Target("some one/saes/x", "x")
    with pytest.raises(ConfigError, match=r"'badname' does not say whose repository it is. Write OWNER/NAME"):
        Target("badname", "x")


def test_paths_on_this_disk_are_left_out(ws: Path, tmp_path: Path) -> None:
    """A workspace of a local model and a local corpus."""
    toml = ws / "saekit.toml"
    text = (
        toml.read_text()
        .replace('model = "lab"', 'model = "/home/me/models/tiny"')
        .replace('data = "lab"', 'data = "/home/me/texts.jsonl"')
    )
    toml.write_text(text)
    folder = Workspace.open(ws).dictionaries.folder(SITE)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"]["model_name"] = "/home/me/models/tiny"
    (folder / "cfg.json").write_text(json.dumps(cfg))
    publishing.write_folder(Workspace.open(ws), SITE, "", Target("someone/saes", SITE), tmp_path / "look")
    for path in (tmp_path / "look").rglob("*"):
        assert path.is_dir() or b"/home/me" not in path.read_bytes(), path
    card = (tmp_path / "look/README.md").read_text()
    assert "of tiny at resid_post.2" in card and "texts.jsonl" in card
    assert json.loads((tmp_path / "look" / SITE / "cfg.json").read_text())["metadata"]["model_name"] == "tiny"


def test_models_and_data_of_the_hub_are_linked(ws: Path, tmp_path: Path) -> None:
    toml = ws / "saekit.toml"
    text = toml.read_text().replace('model = "lab"', 'model = "EleutherAI/pythia-70m"')
    toml.write_text(text.replace('data = "lab"', 'data = ["NeelNanda/pile-10k:0.7", "/home/me/x.txt:0.3"]'))
    shutil.rmtree(ws / "reports")
    measured = publishing.write_folder(Workspace.open(ws), SITE, "", Target("someone/saes", SITE), tmp_path / "look")
    assert not measured
    card = (tmp_path / "look/README.md").read_text()
    metadata = _metadata(card)
    assert (metadata["base_model"], metadata["datasets"]) == ("EleutherAI/pythia-70m", ["NeelNanda/pile-10k"])
    assert "license" not in metadata and "Not measured." in card and "x.txt:0.3" in card and "/home/me" not in card
    with pytest.raises(WorkspaceError, match="not empty"):
        publishing.write_folder(Workspace.open(ws), SITE, "", Target("someone/saes", SITE), tmp_path / "look")


def test_the_hint_to_measure_has_the_address(ws: Path, tmp_path: Path) -> None:
    for file in (ws / "reports").iterdir():
        file.unlink()
    words = ("push", ws, "someone/saes", "--site", SITE, "--name", "jump", "--folder")
    found = here(*words, tmp_path / "a", "--json").json
    assert not found["measured"] and "saekit eval " in found["hint"] and f"{ws.name} --site {SITE}@jump`" in found["hint"]
    assert f"--site {SITE}@jump`" in here(*words, tmp_path / "b").stdout.replace("\n", " ")
    evaluated = here("eval", ws, "--site", f"{SITE}@jump", "--json")
    assert evaluated.status == 0, evaluated.stderr
    assert "hint" not in here(*words, tmp_path / "c", "--json").json


def test_without_a_site_the_default_dictionary_is_put_there(old_workspace: Path, tmp_path: Path) -> None:
    outcome = here("push", old_workspace, "someone/saes", "--folder", tmp_path / "look", "--json")
    assert outcome.status == 2 and "Say which: --site" in outcome.json["hint"]  # several sites have one


def test_dictionaries_with_names_and_transcoders(old_workspace: Path, tmp_path: Path) -> None:
    import sae_lens

    for words, path in ((("--site", SITE, "--name", "jump"), f"{SITE}/jump"), (("--site", "mlp_in.2"), "mlp_in.2--mlp_out.2")):
        folder = tmp_path / path.replace("/", "-")
        outcome = here("push", old_workspace, "someone/saes", *words, "--folder", folder, "--json")
        assert outcome.status == 0, outcome.stderr
        assert outcome.json["path"] == path
        ours, theirs = SAE.load(folder / path), sae_lens.SAE.load_from_disk(folder / path)
        x = torch.randn(9, ours.cfg.d_in, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_the_commands_on_the_card_make_the_same_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_made(tmp_path / "first"))
    for words in (
        ("cache", "lab", "--site", SITE, "--data", "lab", "--tokens", 2000, "--out", "ws"),
        ("train", "ws", "--latents", 64, "--l0", 4, "--train-tokens", 6000, "--lr", 3e-3, "--arch", "jumprelu", "--name", "mine"),
        ("push", "ws", "someone/saes", "--site", SITE, "--name", "mine", "--folder", "look"),
    ):
        outcome = here(*words)
        assert outcome.status == 0, outcome.stderr
    commands = Path("look/README.md").read_text().split("```sh\n")[1].split("```")[0].splitlines()
    wanted = SAE.load(f"ws/sae/{SITE}/mine").fingerprint()
    monkeypatch.chdir(_made(tmp_path / "second"))
    for command in commands:
        outcome = here(*shlex.split(command)[1:])
        assert outcome.status == 0, outcome.stderr
    assert SAE.load(f"ws/sae/{SITE}/mine").fingerprint() == wanted


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
