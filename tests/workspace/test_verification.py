"""`verify` finds a change of any byte of any file, reports all damage, and tells damage from what it cannot know."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from saekit import files
from saekit.errors import SaekitError, StoreCorrupt, Unwritable, WorkspaceError
from saekit.ledger import FILE as LEDGER
from saekit.ledger import Ledger
from saekit.workspace import Workspace, evaluations
from saekit.workspace.verification import Verification
from tests.kit.fuzz import flip

SEEDS = int(os.environ.get("SAEKIT_FLIPS", "4"))


def check(folder: Path) -> Verification:
    return Workspace.open(folder).check(progress=False)


def states(found: Verification) -> dict[str, str]:
    return {part.name: part.state for part in found.parts}


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_finished_workspace_is_sound(covered: Path) -> None:
    found = check(covered)
    assert found.error() is None
    assert {part.state for part in found.parts} == {"sound"}, states(found)


def test_what_a_search_writes_again_may_go(covered: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(covered, tmp_path / "copy"))
    for path in [*(copy / "vectors").glob("*.features.safetensors"), *(copy / "vectors").glob("*.words.safetensors")]:
        path.unlink()
    assert check(copy).error() is None
    next((copy / "vectors").glob("*.npy")).unlink()
    assert check(copy).error() is not None


def damaged_names(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file in turn with one bit changed, and what `verify` says about it."""
    rng = random.Random(0)
    for path in all_files(folder):
        whole = path.read_bytes()
        for _ in range(SEEDS):
            path.write_bytes(flip(whole, rng))
            try:
                found = check(folder)
                yield path, " ".join(part.found + part.name for part in found.damaged)
            except SaekitError as error:  # of saekit.toml, without which there is no workspace
                yield path, str(error)
            finally:
                path.write_bytes(whole)


def test_a_flip_in_any_file_is_found(ws: Path) -> None:
    missed = [path.name for path, said in damaged_names(ws) if not said]
    assert not missed


def test_all_damage_is_reported(ws: Path) -> None:
    expected = []
    for name in ("saekit.toml", "sae/resid_post.2/jump/sae_weights.safetensors", "reports/eval-resid_post.2.json"):
        (ws / name).write_bytes((ws / name).read_bytes() + b"\n")
        expected.append(name)
    (ws / "sae/mlp_in.2/train.json").unlink()
    shard = ws / "activations" / "shard-00000.h5"
    shard.write_bytes(flip(shard.read_bytes(), random.Random(1)))
    found = check(ws)
    named = {part.name for part in found.damaged}
    assert {*expected, "sae/mlp_in.2/train.json", "activations/shard-00000.h5"} <= named
    error = found.error()
    assert error is not None and all(name in error.what for name in expected)
    with pytest.raises(StoreCorrupt):
        Workspace.open(ws).verify(progress=False)


def test_nothing_that_cannot_be_made_again_is_to_be_removed(ws: Path) -> None:
    for path in all_files(ws):
        if path.name != "saekit.toml":
            path.write_bytes(path.read_bytes()[:-1])
    for part in check(ws).damaged:
        assert part.error is not None
        hint = (part.error.hint or "").lower()
        assert not any(word in hint.split() for word in ("remove", "delete", "rm")), part


def test_files_of_an_earlier_version_are_not_called_damaged(old_workspace: Path) -> None:
    found = check(old_workspace)
    assert not found.damaged
    assert "not covered" in states(found).values()
    assert "--record" in found.checks()["files without checksums"]


def test_other_files_are_not_called_damaged(ws: Path) -> None:
    (ws / "notes.txt").write_text("mine")
    (ws / "sae" / "resid_post.2" / "plot.png").write_bytes(b"mine")
    (ws / ".saekit-0123456789abcdef.partial").write_text("cut")
    found = check(ws)
    assert not found.damaged
    assert "notes.txt" in found.checks()["other files"] and "plot.png" in found.checks()["other files"]
    with Workspace.open(ws).writing():
        pass
    assert not (ws / ".saekit-0123456789abcdef.partial").exists() and (ws / "notes.txt").exists()


def test_what_a_user_changed_can_be_accepted(ws: Path) -> None:
    weights = ws / "sae" / "resid_post.2" / "jump"
    study = ws / "saekit.toml"
    study.write_text(study.read_text() + "\n# my note\n")
    shutil.rmtree(weights)
    gone = [part.name for part in check(ws).damaged]
    assert "saekit.toml" in gone and len(gone) > 3
    with pytest.raises(WorkspaceError, match="No checksum"):
        Workspace.open(ws).record_checksums(["no/such/file"])
    Workspace.open(ws).record_checksums(gone)
    assert not check(ws).damaged


def test_a_link_in_the_place_of_a_file_is_damage(ws: Path, tmp_path: Path) -> None:
    file = ws / "sae" / "resid_post.2" / "train.json"
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert "sae/resid_post.2/train.json" in [part.name for part in check(ws).damaged]


def test_what_is_written_is_covered(ws: Path) -> None:
    workspace = Workspace.open(ws)
    with workspace.writing():
        assert workspace.dictionaries.choose("jump", "resid_post.2", keep="first") == "resid_post.2"
    evaluations.keep(workspace, "resid_post.2", "first", {"fvu": 0.5})
    sae = workspace.sae("resid_post.2", "first")
    sae.save(ws / "sae" / "resid_post.2" / "again")
    found = check(ws)
    assert [part.name for part in found.damaged] == ["features of resid_post.2"] or not found.damaged
    assert "not covered" not in states(found).values()
    for name in ("reports/eval-resid_post.2-first.json", "sae/resid_post.2/again/cfg.json", "sae/resid_post.2/cfg.json"):
        assert name in Ledger(ws).read().hashes


def test_killed_at_any_moment_nothing_looks_damaged(ws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the rename and the line in the ledger, in both orders."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    for name, method in (("reports/new.json", "add"), ("reports/eval-resid_post.2.json", "replace")):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(*((Ledger, "add", kill) if method == "add" else (Path, "replace", kill)))
            files.write_whole(ws / name, "{}")
        assert not check(ws).damaged


def test_a_shard_that_cannot_be_opened_is_not_to_be_moved(ws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without locks, with too many open files, or without permission."""
    import h5py

    def fail(*_: object, **settings: object) -> None:
        assert settings["locking"] is False
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", fail)
    (part,) = (part for part in check(ws).damaged if part.name.startswith("activations"))
    assert isinstance(part.error, StoreCorrupt)
    assert "may be sound" in str(part.error.hint) and "move" not in str(part.error.hint)


def test_damage_of_the_ledger_is_found(ws: Path) -> None:
    ledger = ws / LEDGER
    lines = ledger.read_bytes().splitlines(keepends=True)
    for damaged in (b"".join(lines[:-1]) + lines[-1][:-5], b"x" + b"".join(lines), b"".join(lines) + b"what?\n"):
        ledger.write_bytes(damaged)
        assert LEDGER in [part.name for part in check(ws).damaged]
        Workspace.open(ws).record_checksums()
        assert not check(ws).damaged


def test_a_long_ledger_is_compacted(ws: Path) -> None:
    for _ in range(1200):
        Ledger(ws).forget(ws / "sae" / "gone")
    assert len((ws / LEDGER).read_text().splitlines()) > 1200
    with Workspace.open(ws).writing():
        pass
    assert len((ws / LEDGER).read_text().splitlines()) < 100
    assert not check(ws).damaged


# Folders that somebody else prepared


@pytest.mark.parametrize(
    "name", ["sae/resid_post.2", "reports", "activations", "sae/resid_post.2/metrics.jsonl", "features.sqlite"]
)
def test_nothing_is_written_through_links_that_lead_outside(ws: Path, tmp_path: Path, name: str) -> None:
    shutil.move(ws / name, tmp_path / "home")
    (ws / name).symlink_to(tmp_path / "home")
    workspace = Workspace.open(ws)
    with pytest.raises(Unwritable, match="outside of the workspace"), workspace.writing():
        pass
    if name == "reports":
        before = {path.name: path.read_bytes() for path in (tmp_path / "home").iterdir()}
        evaluations.keep(workspace, "resid_post.2", "", {"fvu": 1.0})
        assert {path.name: path.read_bytes() for path in (tmp_path / "home").iterdir()} == before
        with pytest.raises(Unwritable):
            _ = workspace.reports


def test_links_within_the_workspace_are_allowed(ws: Path, tmp_path: Path) -> None:
    (ws / "sae" / "resid_post.1").symlink_to(ws / "sae" / "resid_post.2")
    logs = ws / "sae" / "resid_post.2" / "wandb" / "run-1"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path)  # as Weights & Biases does it
    with Workspace.open(ws).writing():
        pass


def test_a_relative_path_survives_a_change_of_folder(ws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ws.parent)
    workspace = Workspace.open("ws")
    assert workspace.shown == "ws"
    monkeypatch.chdir(tmp_path.parent)
    assert workspace.sae("resid_post.2").cfg.n_latents == 24
