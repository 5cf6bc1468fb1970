"""`saekit choose`: of several dictionaries of a site, the one that is searched and steered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from saekit.errors import WorkspaceError
from saekit.sae import SAE
from saekit.workspace import dictionaries
from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit

SITE = "resid_post.2"


@pytest.fixture
def ws(saekit: Saekit, workspace: Path, tmp_path: Path) -> Path:
    """A workspace with a dictionary of its own and one called small."""
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    made = saekit("train", copy, "--latents", 48, "--k", 4, "--train-tokens", "2e4", "--name", "small", "--json")
    assert made.status == 0, made.stderr
    return copy


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_its_features_are_indexed_searched_and_steered(saekit: Saekit, ws: Path) -> None:
    own, small = ws / "sae" / SITE, ws / "sae" / SITE / "small"
    before, chosen = _contents(own), _contents(small)
    refused = saekit("choose", ws, "small", "--json")
    assert (refused.status, refused.json["error"]) == (2, "WorkspaceError") and "--keep" in refused.json["hint"]
    assert _contents(own) == before
    outcome = saekit("choose", ws, "small", "--keep", "first", "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json == {"site": SITE, "name": "small", "folder": str(own)}
    assert _contents(own) == chosen == _contents(small) and _contents(own / "first") == before
    assert "saekit index" in saekit("choose", ws, "small").stdout  # again changes nothing
    assert _contents(own / "first") == before

    for command in (
        ("steer", ws, "--feature", "7", "Once"),
        ("search", ws, "dog"),
        ("search", ws, "dog", "--deep"),
        ("show", ws, "7"),
        ("report", ws, "--query", "dog"),
    ):
        stale = saekit(*command, "--json")
        assert (stale.status, stale.json["error"]) == (2, "WorkspaceError") and "saekit index" in stale.json["hint"], command
    assert saekit("index", ws, "--json").json == [{"site": SITE, "name": "", "features": 48}]
    assert saekit("search", ws, "dog", "--json").status == 0
    assert saekit("steer", ws, "--feature", "7", "Once", "--max-new-tokens", 3).status == 0
    assert saekit("show", ws, "300").status == 2  # of the one before
    assert saekit("eval", ws, "--name", "first", "--json").status == 0


@pytest.mark.parametrize("missing", ["nothing", "sae_weights.safetensors", "cfg.json"])
def test_broken_off_it_ends_the_same_when_done_again(ws: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Stopped before a file is written, the site has no dictionary or a whole one, never a mixed one; nothing is lost."""
    found = Workspace.open(ws).dictionaries
    own, small = found.folder(SITE), found.folder(SITE, "small")
    before, chosen = _contents(own), _contents(small)

    class Killed(BaseException):
        pass

    import saekit.files

    real = saekit.files.whole

    def killed(path: Path) -> object:
        if path == own / missing:
            raise Killed
        return real(path)

    monkeypatch.setattr(saekit.files, "whole", killed)
    if missing != "nothing":
        with pytest.raises(Killed):
            found.choose("small", keep="first")
        assert found.all() == [(SITE, "first"), (SITE, "small")]
        with pytest.raises(WorkspaceError, match="saekit choose"):
            found.site()
    monkeypatch.setattr(saekit.files, "whole", real)
    found.choose("small", keep="first")
    assert _contents(own) == chosen and _contents(own / "first") == before


def test_which_is_meant(ws: Path, saekit: Saekit) -> None:
    found = Workspace.open(ws).dictionaries
    assert found.all() == [(SITE, ""), (SITE, "small")]
    assert (found.find(), found.find(name="small"), found.find(SITE)) == ((SITE, ""), (SITE, "small"), (SITE, ""))
    for site, name, words in ((None, "smal", "resid_post.2@small"), ("resid_post.1", "", "has no dictionary at resid_post.1")):
        with pytest.raises(WorkspaceError, match=words):
            found.find(site, name)
    shutil.copytree(ws / "sae" / SITE / "small", ws / "sae" / "resid_post.3" / "small")
    with pytest.raises(WorkspaceError, match=r"called 'small' at resid_post.2, resid_post.3.*--site resid_post.2"):
        found.find(name="small")
    assert found.site() == Workspace.open(ws).dictionaries.sites()[0]
    with pytest.raises(WorkspaceError, match="saekit train"):
        dictionaries.Dictionaries(ws / "nothing").site()


def test_verify_looks_at_all(saekit: Saekit, ws: Path) -> None:
    assert f"sae/{SITE}/small" in saekit("verify", ws, "--json").json["checks"]
    weights = ws / "sae" / SITE / "small" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    damaged = saekit("verify", ws, "--json")
    assert (damaged.status, damaged.json["error"]) == (2, "SAEFormatError")


def test_what_was_measured_stays_known(saekit: Saekit, ws: Path, tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    file.write_text(
        "".join(
            json.dumps({"text": f"{name} had {n} cats.", "label": name}) + "\n" for name in ("Tom", "Lily") for n in range(60)
        )
    )
    probed = saekit("eval", ws, "--labelled", file, "--json")
    assert probed.status == 0, probed.stderr
    kept = ws / "reports" / f"eval-{SITE}.json"
    assert json.loads(kept.read_text())["probe"] == probed.json["probe"]
    for command in (("report", ws), ("eval", ws)):
        assert saekit(*command).status == 0
        assert json.loads(kept.read_text())["probe"] == probed.json["probe"]
    SAE.load(ws / "sae" / SITE / "small").save(ws / "sae" / SITE)  # of another dictionary nothing is known
    assert "probe" not in saekit("eval", ws, "--json").json
