"""Every command that takes a site can address a dictionary by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from saekit.cli.app import build
from saekit.cli.commands import COMMANDS
from tests.kit.commands import Saekit
from tests.kit.findable import findable

# They make dictionaries, take the name as an argument, or read a site of the model.
NOT_YET_NAMED = ("fit", "cache", "demo", "choose", "vector fit", "edit tune")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NOT_YET_NAMED])
def test_a_site_comes_with_a_name(command: str) -> None:
    flags = [flag for each in build(command).params for flag in each.opts]
    assert ("--site" in flags) <= ("--name" in flags)


@pytest.fixture(scope="module")
def two(saekit: Saekit, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace with another, smaller dictionary, whose features are in the database."""
    folder = Path(shutil.copytree(workspace, tmp_path_factory.mktemp("named") / "ws"))
    for arguments in (
        ("train", "--latents", 64, "--k", 4, "--train-tokens", 20_000, "--name", "small"),
        ("index", "--name", "small"),
    ):
        outcome = saekit(arguments[0], folder, *arguments[1:], "--json")
        assert outcome.status == 0, outcome.stderr
    assert outcome.json == [{"site": "resid_post.2", "name": "small", "features": 64}]
    return folder


def test_features_of_a_named_dictionary(saekit: Saekit, two: Path) -> None:
    word = findable(two, "resid_post.2@small").word
    hits = saekit("search", two, word, "--name", "small", "--json").json
    assert hits and all(int(hit["ref"].rpartition("/")[2]) < 64 for hit in hits)
    feature = hits[0]["ref"].rpartition("/")[2]
    assert saekit("show", two, feature, "--name", "small", "--json").json["ref"] == hits[0]["ref"]
    steered = saekit("steer", two, "-f", feature, "--name", "small", "--max-new-tokens", 2, "--no-control", "One day", "--json")
    assert steered.status == 0, steered.stderr
    page = saekit("report", two, "--name", "small", "--query", word, "--json")
    assert page.status == 0 and page.json["report"].endswith("resid_post.2-small.html"), page.stderr
    assert "64" in Path(page.json["report"]).read_text()


def test_the_estimate_is_of_the_named_dictionary(saekit: Saekit, two: Path) -> None:
    asks = (
        "--scorer",
        "detection",
        "--method",
        "words",
        "--endpoint",
        "http://localhost:9/v1",
        "--model",
        "m",
        "--dry-run",
        "--json",
    )
    full = saekit("score", two, "--name", "small", "--features", "resid_post.2@small/0-63", *asks)
    bare = saekit("score", two, "--name", "small", "--features", "0-63", *asks)
    assert bare.status == 0, bare.stderr
    assert bare.json == full.json and bare.json["estimate"]["requests"] > 0


def test_numbers_are_of_the_site_that_is_given(saekit: Saekit, two: Path, tmp_path: Path) -> None:
    """Also where the workspace has dictionaries at several sites, and a bare number alone says too little."""
    ws = Path(shutil.copytree(two, tmp_path / "ws"))
    shutil.copytree(ws / "sae" / "resid_post.2", ws / "sae" / "resid_post.1")
    asks = ("--endpoint", "http://localhost:9/v1", "--model", "m", "--dry-run", "--json")
    assert saekit("autolabel", ws, "--features", "0-9", *asks).json["error"] == "WorkspaceError"
    outcome = saekit("autolabel", ws, "--features", "0-9", "--site", "resid_post.2", *asks)
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["features"] == 10
    judged = ("--scorer", "detection", "--method", "words")
    outcome = saekit("score", ws, "--features", "0-9", "--site", "resid_post.2", *judged, *asks)
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["estimate"]["requests"] > 0


def test_a_name_that_is_not_there(saekit: Saekit, two: Path) -> None:
    for arguments in (
        ("search", two, "mom"),
        ("show", two, "3"),
        ("report", two),
        ("index", two),
        ("steer", two, "-f", "3", "x"),
    ):
        outcome = saekit(*arguments, "--name", "large", "--json")
        assert (outcome.status, outcome.json["error"]) == (2, "WorkspaceError"), outcome.stderr
        assert "large" in outcome.json["message"]
