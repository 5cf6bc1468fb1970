"""The commands export, import, merge and diff, as a user gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.kit.commands import Saekit

SITE = "resid_post.2"


def test_export_and_import(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    """A dictionary is exported and imported into a new workspace, which is searched and checked like any other."""
    out, made = tmp_path / "out", tmp_path / "made"
    exported = saekit("export", workspace, out, "--features", "0-511", "--set", "res-x", "--model-id", "stories", "--json").json
    assert exported["written"][0]["features"] == 512
    assert "exists" in saekit("export", workspace, out).stderr
    assert "--model" in saekit("import", made, out).stderr
    done = saekit("import", made, out, "--model", "some/model", "--json")
    assert done.status == 0, done.stderr
    assert done.json[0]["dictionary"] == f"{SITE}@res-x" and done.json[0]["new"]
    here, there = (saekit("search", folder, "mom", "-n", 3, "--json").json for folder in (workspace, made))
    assert {hit["feature"] for hit in here} & {hit["feature"] for hit in there}
    assert saekit("show", made, f"{SITE}@res-x/{there[0]['feature']}").status == 0
    checked = saekit("verify", made, "--json")
    assert checked.status == 0, checked.stdout
    again = saekit("import", made, out)
    assert "0 labels were added" in again.stdout


def test_merge_and_diff(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    for name in ("saekit.toml", "features.sqlite", "features.sqlite.sha256"):
        shutil.copy(workspace / name, other / name)
    shutil.copytree(workspace / "vectors", other / "vectors")
    assert "no difference" in saekit("diff", workspace, other).stdout
    from feature_db import FeatureDB

    with FeatureDB.open(other / "features.sqlite") as db:
        db.set_label((SITE, 3), "mine")
    found = saekit("diff", workspace, other / "features.sqlite", "--json").json
    assert found["labels"] == [{"ref": f"feature:{SITE}/3", "method": "human", "model": None, "before": None, "after": "mine"}]
    assert "mine" in saekit("diff", workspace, other).stdout
    merged = saekit("merge", workspace, other, "--out", out, "--json").json
    assert (merged["same"], merged["labels"]) == ([SITE], 1)
    assert saekit("show", out, f"{SITE}/3", "--json").json["label"] == "mine"
    assert saekit("verify", out).status == 0
    assert "no feature database" in saekit("diff", workspace, tmp_path).stderr


def test_delphi_has_every_activation(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    saekit("export", workspace, tmp_path / "out", "--format", "delphi", "--features", "0-9,20")
    counts = np.zeros(512, int)
    for file in (tmp_path / "out" / "latents" / SITE).glob("*.safetensors"):
        locations = load_file(file)["locations"]
        np.add.at(counts, locations[:, 2].astype(int) + int(file.stem.split("_")[0]), 1)
    assert counts.nonzero()[0].max() <= 20
    rows = saekit("sql", workspace, "select number, count from features where number in (0, 9, 20)", "--json").json
    assert all(counts[row["number"]] == row["count"] for row in rows)
    assert json.loads((tmp_path / "out" / "latents" / SITE / "config.json").read_text())["n_splits"] == 5


def test_mistakes_are_named(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--format", "csv"), "no format 'csv'"),
        (("--features", "9999"), "no feature 9999"),
        (("--features", "@none"), "no list 'none'"),
        (("--site", "resid_post.1"), "no features of resid_post.1"),
    ):
        outcome = saekit("export", workspace, tmp_path / "out", *arguments)
        assert outcome.status == 2 and message in outcome.stderr, outcome.stderr
    assert not (tmp_path / "out").exists()
