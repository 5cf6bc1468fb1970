"""The commands export, import, merge and diff, as a user gives them, on a workspace of an earlier version."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from feature_db import FeatureDB
from feature_db.exchange import FORMATS, Export, Format, Written
from tests.kit.commands import Saekit

SITE = "resid_post.2"
ARCHIVE = Path(__file__).parents[1] / "kit" / "golden" / "v0.1.0.zip"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two dictionaries. Tests must leave it as they found it."""
    folder = tmp_path_factory.mktemp("golden")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("ws/")])
    return folder / "ws"


def test_export_and_import(saekit: Saekit, old: Path, tmp_path: Path) -> None:
    """A dictionary is exported and imported into a new workspace, which is searched and checked like any other."""
    out, made = tmp_path / "out", tmp_path / "made"
    exported = saekit("export", old, out, "--site", SITE, "--set", "res-x", "--model-id", "stories", "--json")
    assert exported.status == 0, exported.stderr
    features = exported.json["written"][0]["features"]
    assert "exists" in saekit("export", old, out).stderr
    unknown = saekit("export", old, tmp_path / "named", "--name", "nobody", "--json")
    assert (unknown.status, unknown.json["error"]) == (2, "WorkspaceError") and not (tmp_path / "named").exists()
    assert "--model" in saekit("import", made, out).stderr
    done = saekit("import", made, out, "--model", "some/model", "--json")
    assert done.status == 0, done.stderr
    assert (done.json[0]["dictionary"], done.json[0]["new"], done.json[0]["features"]) == (f"{SITE}@res-x", True, features)
    (hit,) = saekit("search", made, "label that a person wrote", "-n", 1, "--json").json
    assert hit["ref"] == f"feature:{SITE}@res-x/3"
    for ref in (hit["ref"], "3"):
        assert "label that a person wrote" in saekit("show", made, ref).stdout
    assert "stale" not in saekit("info", made).stdout
    checked = saekit("verify", made, "--json")
    assert checked.status == 0, checked.stdout
    again = saekit("import", made, out)
    assert "0 labels were added" in again.stdout


def test_merge_and_diff(saekit: Saekit, old: Path, tmp_path: Path) -> None:
    """Databases of an earlier version are read as they are; the merged one is of this version, with everybody's labels."""
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(old, other)
    assert "no difference" in saekit("diff", old, other).stdout
    with FeatureDB.open(other / "features.sqlite") as db:
        db.set_label((SITE, 5), "mine")
        db.add_note((SITE, 4), "a note")
    found = saekit("diff", old, other / "features.sqlite", "--json").json
    label = {"ref": f"feature:{SITE}/5", "method": "human", "model": None, "before": None, "after": "mine"}
    assert found["labels"] == [label] and found["features"] == []
    assert "mine" in saekit("diff", old, other).stdout
    merged = saekit("merge", old, other, "--out", out, "--json")
    assert merged.status == 0, merged.stderr
    assert (sorted(merged.json["same"]), merged.json["labels"]) == (["mlp_in.2", SITE], 2)  # and the note
    record = saekit("show", out, f"{SITE}/5", "--json").json
    assert record["label"] == "mine"
    with FeatureDB.open(out / "features.sqlite") as db:
        assert [note.text for note in db.notes((SITE, 4))] == ["a note"]
        db.verify()
    checked = saekit("verify", out)
    assert checked.status == 0, checked.stdout
    shown = saekit("info", out).stdout
    assert "not covered" in shown and "stale" not in shown
    assert "no feature database" in saekit("diff", old, tmp_path).stderr


def test_a_format_is_one_row(saekit: Saekit, old: Path, tmp_path: Path) -> None:
    def write(job: Export) -> Written:
        (job.folder / "names.txt").write_text(job.names.source)
        return Written(job.sae.dictionary, len(job.numbers), 1)

    FORMATS.register("dummy", Format("A test.", write))
    try:
        outcome = saekit("export", old, tmp_path / "out", "--format", "dummy", "--site", SITE)
    finally:
        FORMATS.unregister("dummy")
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / "out" / "names.txt").read_text() == "2-resid-post-saekit"


def test_mistakes_are_named(saekit: Saekit, old: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--format", "csv"), "no format 'csv'"),
        (("--features", f"{SITE}/9999"), "no feature 9999"),
        (("--features", "9"), "Say which"),
        (("--features", "@none"), "no list 'none'"),
        (("--site", "resid_post.1"), "no features of resid_post.1"),
    ):
        outcome = saekit("export", old, tmp_path / "out", *arguments)
        assert outcome.status == 2 and message in outcome.stderr, outcome.stderr
    assert not (tmp_path / "out").exists()
