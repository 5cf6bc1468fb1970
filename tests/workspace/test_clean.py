"""`clean` removes what is named and nothing else, as a whole, and leaves a workspace that `verify` finds sound."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from saekit.errors import ConfigError, WorkspaceError
from saekit.workspace import Workspace, cleaning
from saekit.workspace.cleaning import Selection
from tests.kit.commands import Saekit
from tests.kit.crash import die_at, killed


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    skipped = (".lock", "checksums.txt", "features.sqlite.sha256")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name not in skipped}


def clean(folder: Path, **selection: Any) -> list[cleaning.Removal]:
    ws = Workspace.open(folder)
    with ws.writing():
        found = cleaning.planned(ws, Selection(**selection))
        cleaning.remove(ws, found)
    return found


def sound(folder: Path) -> None:
    found = Workspace.open(folder).check(progress=False)
    assert found.error() is None, found.checks()


def gone(folder: Path, before: dict[str, bytes]) -> set[str]:
    after = contents(folder)
    kept = {name: before[name] for name in after if name in before}
    changed = {name for name in kept if after[name] != kept[name]}
    assert changed <= {"activations/manifest.json", "features.sqlite"}
    return set(before) - set(after)


@pytest.mark.parametrize(
    ("selection", "prefixes"),
    [
        ({"checkpoints": True}, ("sae/resid_post.2/cut/checkpoints/",)),
        ({"activations": True}, ("activations/shard-",)),
        ({"names": ("jump",)}, ("sae/resid_post.2/jump/",)),
        ({"names": ("resid_post.2@jump", "reports/eval-resid_post.2.json")}, ("sae/resid_post.2/jump/", "reports/")),
        ({"names": ("sae/resid_post.2/jump",)}, ("sae/resid_post.2/jump/",)),
        ({"names": ("reports",), "checkpoints": True}, ("reports/", "sae/resid_post.2/cut/checkpoints/")),
    ],
)
def test_what_is_named_goes_and_nothing_else(ws: Path, selection: dict[str, Any], prefixes: tuple[str, ...]) -> None:
    before = contents(ws)
    plan = cleaning.planned(Workspace.open(ws), Selection(**selection))
    assert contents(ws) == before
    expected = {name for name in before if name.startswith(prefixes)}
    assert sum(each.bytes for each in plan) == sum(len(before[name]) for name in expected)
    clean(ws, **selection)
    assert gone(ws, before) == expected
    sound(ws)


def test_a_default_dictionary_goes_without_the_named_ones_in_its_folder(ws: Path, saekit: Saekit) -> None:
    assert saekit("index", ws, "--site", "resid_post.2", "--json").status == 0
    with Workspace.open(ws).database() as database:
        database.set_label("feature:resid_post.2/3", "mine")
    before = contents(ws)
    clean(ws, names=("resid_post.2",))
    lost = {name for name in gone(ws, before) if not name.startswith("vectors/")}
    assert lost == {name for name in before if name.startswith("sae/resid_post.2/") and name.count("/") == 2}
    sound(ws)
    ws_now = Workspace.open(ws)
    assert ("resid_post.2", "jump") in ws_now.dictionaries.all() and ("resid_post.2", "") not in ws_now.dictionaries.all()
    with ws_now.database() as database:
        assert "resid_post.2" not in [each.site for each in database.saes()]
        assert sum(database.set_aside().values()) > 0
    for name, content in before.items():  # the dictionary returns, from a copy
        if name in lost:
            (ws / name).write_bytes(content)
    assert saekit("index", ws, "--site", "resid_post.2", "--json").status == 0
    with Workspace.open(ws).database() as database:
        assert database.feature("feature:resid_post.2/3").label == "mine"


def test_activations_come_back_as_they_were(ws: Path) -> None:
    before = contents(ws)
    clean(ws, activations=True)
    with pytest.raises(Exception, match="unfinished"):
        Workspace.open(ws).store()
    again = Workspace.open(ws)
    with again.writing():
        again.cache(progress=False)
    assert contents(ws)["activations/shard-00000.h5"] == before["activations/shard-00000.h5"]


@pytest.mark.parametrize("selection", [{"checkpoints": True}, {"activations": True}, {"names": ("jump", "resid_post.2")}])
def test_a_kill_at_any_change_of_the_disk_leaves_a_sound_workspace(ws: Path, selection: dict[str, Any], tmp_path: Path) -> None:
    for step in range(1, 60):
        copy = tmp_path / f"copy{step}"
        shutil.copytree(ws, copy)
        patch = die_at(step)

        def work(copy: Path = copy, patch: Any = patch) -> None:
            ws_now = Workspace.open(copy)
            with ws_now.writing():
                found = cleaning.planned(ws_now, Selection(**selection))
                patch()
                cleaning.remove(ws_now, found)

        died = killed(work)
        sound(copy)
        with contextlib.suppress(ConfigError):  # the named parts are gone
            clean(copy, **selection)
        sound(copy)
        shutil.rmtree(copy)
        if not died:
            return
    raise AssertionError("it never ended")


def test_it_refuses_while_a_command_runs(ws: Path, saekit: Saekit) -> None:
    before = contents(ws)
    with Workspace.open(ws).writing():
        for more in ([], ["--yes"]):
            refused = saekit("clean", ws, "--activations", *more, "--json")
            assert (refused.status, refused.json["error"]) == (2, "WorkspaceError")
            assert f"process {os.getpid()} on" in refused.json["hint"]
    assert contents(ws) == before


def test_without_yes_nothing_is_removed(ws: Path, saekit: Saekit) -> None:
    before = contents(ws)
    plan = saekit("clean", ws, "--activations", "--name", "jump", "--json").json
    assert saekit("clean", ws, "--activations", "--name", "jump", "--dry-run", "--json").json == plan
    assert plan["removed"] is False
    assert [part["what"] for part in plan["parts"]] == ["cached activations", "dictionary resid_post.2@jump"]
    assert contents(ws) == before
    done = saekit("clean", ws, "--activations", "--name", "jump", "--yes", "--json").json
    assert done["removed"] is True and done["parts"] == plan["parts"]
    assert saekit("clean", ws, "--activations", "--yes", "--json").json["parts"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Nothing is named"),
        (["--name", "nothing"], "no dictionary and no file"),
        (["--name", "jmup"], "Did you mean 'jump'"),
        (["--name", "saekit.toml"], "is needed"),
        (["--name", "checksums.txt"], "is needed"),
        (["--name", "activations"], "--activations"),
        (["--name", "activations/shard-00000.h5"], "--activations"),
        (["--name", "sae"], "Name each dictionary"),
        (["--name", "../outside"], "not in the workspace"),
        (["--name", "."], "not in the workspace"),
        (["--name", ""], "no dictionary and no file"),
        (["--dry-run", "--yes", "--activations"], "exclude each other"),
    ],
)
def test_bad_names_are_refused(ws: Path, saekit: Saekit, arguments: list[str], said: str) -> None:
    (ws.parent / "outside").write_text("precious")
    before = contents(ws)
    outcome = saekit("clean", ws, *arguments, *(["--yes"] if "--yes" not in arguments else []), "--json")
    assert outcome.status == 2 and said in f"{outcome.json['message']} {outcome.json['hint']}", outcome.stdout
    assert contents(ws) == before and (ws.parent / "outside").read_text() == "precious"


def test_what_people_made_is_said_to_be_lost(ws: Path, saekit: Saekit) -> None:
    with Workspace.open(ws).database() as database:
        database.set_label("feature:resid_post.2/3", "mine")
        labels, entries = database.by_people()
    (part,) = saekit("clean", ws, "--name", "features.sqlite", "--json").json["parts"]
    assert f"{labels} labels and {entries} list entries by people, which cannot be made again" in part["again"]
    (ws / "notes.md").write_text("thoughts")
    (part,) = saekit("clean", ws, "--name", "notes.md", "--json").json["parts"]
    assert part["again"] == "it cannot be made again"


def test_a_link_that_leads_outside_is_never_followed(ws: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "shard-00000.h5").write_text("years of work")
    (ws / "elsewhere").symlink_to(precious)
    with pytest.raises(WorkspaceError):
        clean(ws, names=("elsewhere",))
    with pytest.raises(ConfigError):
        cleaning.planned(Workspace.open(ws), Selection(names=("elsewhere/shard-00000.h5/..",)))
    assert (precious / "shard-00000.h5").read_text() == "years of work"


def test_a_full_disk_can_be_cleaned(full: Path) -> None:
    clean(full, checkpoints=True)
    assert not list(full.rglob("step-*"))
    sound(full)
