"""`info` and `list`: what they say is what is on the disk, also of damaged, half-made and foreign workspaces."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saekit.errors import SaekitError, WorkspaceError
from saekit.locks import record_of
from saekit.views.workspace import workspace_view
from saekit.views.workspaces import workspaces_view
from saekit.workspace import Workspace
from saekit.workspace.study import Study
from tests.kit.commands import Saekit, environment
from tests.kit.fuzz import flip

HEAVY = ("torch", "transformers", "sae_lens", "h5py", "datasets", "numba")


def by_address(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["address"]: each for each in facts["dictionaries"]}


def test_it_says_what_the_workspace_says_of_itself(covered: Path) -> None:
    facts, ws = workspace_view(covered), Workspace.open(covered)
    assert facts["study"]["model"] == ws.study.model and facts["problems"] == []
    store = ws.store()
    assert facts["activations"]["tokens"] == store.n_tokens and facts["activations"]["complete"]
    assert facts["activations"]["sites"] == {str(site): store.width(site) for site in store.sites}
    finished = {(each["site"], each["name"]) for each in facts["dictionaries"] if each["state"] == "finished"}
    assert finished == set(ws.dictionaries.all())
    for place, name in ws.dictionaries.all():
        found = by_address(facts)[f"{place}@{name}" if name else place]
        assert found["features"] == ws.sae(place, name).cfg.n_latents
    measured = ws.evaluation("resid_post.2")
    metrics = by_address(facts)["resid_post.2"]["metrics"]
    assert {key: metrics[key] for key in ("fvu", "l0", "ce_recovered", "dead_fraction")} == {
        key: measured[key] for key in ("fvu", "l0", "ce_recovered", "dead_fraction")
    }
    on_disk = sum(path.lstat().st_size for path in covered.rglob("*") if path.is_file())
    assert facts["sizes"]["total"] == on_disk == sum(count for part, count in facts["sizes"].items() if part != "total")
    json.dumps(facts, allow_nan=False)


def test_nothing_heavy_is_loaded_and_nothing_is_written(covered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in covered.rglob("*")}
    code = f"""
import sys
sys.argv = ["saekit", "info", {str(covered)!r}]
from saekit.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stderr.strip() == "[]" and "resid_post.2" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in covered.rglob("*")} == before


def test_the_command_that_it_gives_for_unfinished_training_finishes_it(
    ws: Path, saekit: Saekit, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = by_address(workspace_view(ws))["resid_post.2@cut"]
    assert unfinished["state"] == "unfinished" and unfinished["checkpoint"]["tokens"] > 0
    (line,) = (step["command"] for step in workspace_view(ws)["next"] if "cut" in step["why"])
    outcome = saekit(*shlex.split(line)[1:], "--json")
    assert outcome.status == 0, outcome.stderr
    rows = [json.loads(row) for row in (ws / unfinished["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert min(row["tokens"] for row in rows[-3:]) > unfinished["checkpoint"]["tokens"]
    assert by_address(workspace_view(ws))["resid_post.2@cut"]["state"] == "finished"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data": ("lab:0.7", "lab:facts:0.3"), "tokens": 5000, "shuffle_seed": 0},
        {"text_field": "title,body", "separator": " \n", "records": 'lang == "en"', "train_on": "assistant"},
        {"revision": "main", "dtype": "bfloat16", "context": 64, "packing": "document", "store_dtype": "float16"},
        {"data_config": "a b", "data_split": "heldout", "data_revision": "v1"},
        {"device": "cpu", "attn_implementation": "eager", "quantization": "4bit", "tokenizer": "gpt2", "bos": "no"},
        {"bos": "any", "trust_remote_code": True, "device_map": "auto"},
    ],
)
def test_the_command_that_it_gives_for_caching_describes_the_same_study(settings: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import fields

    from saekit.cli.app import build
    from saekit.cli.options import LoadOptions, StudyOptions
    from saekit.cli.plan import plan_workspace

    study = Study(**{"model": "lab", "sites": ("mlp_out.1", "resid_post.2"), "data": "lab", **settings})
    study.save(tmp_path)
    (line,) = (step["command"] for step in workspace_view(tmp_path)["next"])
    params = build("cache").make_context("cache", shlex.split(line)[2:]).params
    options = StudyOptions(**{field.name: params[field.name] for field in fields(StudyOptions)})
    load = LoadOptions(**{field.name: params[field.name] for field in fields(LoadOptions)})
    workspace = plan_workspace(params["model"], params["site"], options, load, params["out"])  # refuses another study
    assert workspace.study == study and workspace.path.resolve() == tmp_path.resolve()


def test_another_dictionary_at_the_site_makes_the_database_stale(ws: Path, saekit: Saekit) -> None:
    assert saekit("index", ws, "--site", "resid_post.2", "--json").status == 0  # records the files
    assert by_address(workspace_view(ws))["resid_post.2"]["indexed"] == "fresh"
    copy = ws.with_name("copy")
    shutil.copytree(ws, copy, copy_function=shutil.copyfile)  # other times of change
    assert by_address(workspace_view(copy))["resid_post.2"]["indexed"] == "fresh"
    assert saekit("choose", ws, "jump", "--site", "resid_post.2", "--keep", "before", "--json").status == 0
    facts = workspace_view(ws)
    assert facts["database"]["state"] == "stale" and by_address(facts)["resid_post.2"]["indexed"] == "stale"
    steps = [shlex.split(step["command"])[3:] for step in facts["next"] if step["command"].startswith("saekit index ")]
    assert steps == [["--site", "resid_post.2"], ["--all"]]  # of the kept one nothing is indexed
    with pytest.raises(WorkspaceError):
        Workspace.open(ws).database().search("dog", site="resid_post.2")


def test_a_search_of_all_leaves_out_what_was_replaced(ws: Path, saekit: Saekit) -> None:
    site, kept = "resid_post.2", ("--site", "resid_post.2", "--name", "before")
    assert saekit("index", ws, "--all", "--json").status == 0
    chosen = saekit("choose", ws, "jump", "--site", site, "--keep", "before")
    lines = [shlex.split(line) for line in chosen.stdout.splitlines() if "saekit index" in line]
    assert [line[3:] for line in lines] == [["--site", site], list(kept)]
    found = saekit("search", ws, "dog", "-n", 50, "--json")
    assert found.status == 0, found.stderr
    places = {row["ref"].removeprefix("feature:").rpartition("/")[0] for row in found.json}
    assert places and site not in places
    assert f"leaves out {site}." in (told := " ".join(found.stderr.split())) and f"--site {site}`" in told
    for named in (("--site", site), ("--like", f"{site}/7")):
        refused = saekit("search", ws, *(("dog",) if named[0] == "--site" else ()), *named, "--json")
        assert (refused.status, refused.json["error"]) == (2, "WorkspaceError"), named
    for line in lines:
        assert saekit(*line[1:], "--json").status == 0
    again = saekit("search", ws, "dog", "-n", 50, "--json")
    assert again.status == 0 and "leaves out" not in again.stderr


def test_a_running_command_is_named_and_a_killed_one_too(ws: Path) -> None:
    code = f"""
import sys, time
from saekit.workspace.folder import WorkspaceFolder
sys.argv = ["saekit", "train", "ws", "--latents", "16"]
with WorkspaceFolder.open({str(ws)!r}).writing():
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    (job,) = workspace_view(ws)["jobs"]
    assert (job["state"], job["pid"], job["command"]) == ("running", process.pid, "saekit train ws --latents 16")
    assert workspace_view(ws)["next"] == []
    assert workspaces_view(ws.parent)["workspaces"][0]["state"] == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    jobs = {job["state"]: job for job in workspace_view(ws)["jobs"]}
    assert jobs["stopped"]["command"] == "saekit train ws --latents 16"
    assert workspace_view(ws)["next"][0]["command"] == "saekit train ws --latents 16"
    with Workspace.open(ws).writing():
        pass
    assert not record_of(ws / ".lock").exists() and "stopped" not in {job["state"] for job in workspace_view(ws)["jobs"]}


def test_half_made_workspaces(tmp_path: Path, saekit: Saekit) -> None:
    with pytest.raises(WorkspaceError, match="There is no workspace"):
        workspace_view(tmp_path / "none")
    with pytest.raises(WorkspaceError, match="is not a workspace"):
        workspace_view(tmp_path)
    (tmp_path / "file").write_text("")
    assert saekit("info", tmp_path / "file", "--json").status == 2
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "checksums.txt").write_text("# saekit checksums 1\n")
    facts = workspace_view(begun)
    assert facts["study"] is None and facts["problems"][0]["part"] == "saekit.toml"
    Study("lab", ("resid_post.2",), "lab", tokens=1000).save(begun)
    facts = workspace_view(begun)
    assert facts["problems"] == [] and facts["activations"] is None
    assert facts["next"][0]["command"].startswith("saekit cache lab --out ")
    (begun / "activations").mkdir()
    assert workspace_view(begun)["activations"] is None
    assert saekit("info", begun).status == 0


def test_damage_of_any_file_is_no_traceback(ws: Path, saekit: Saekit) -> None:
    rng = random.Random(0)
    for path in sorted(path for path in ws.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        flipped = flip(whole, rng) if whole else b"\xff"
        for content in (b"", b"{", b"[1]", b"null", b'{"config": 3, "provenance": [], "shards": {}}', flipped):
            path.write_bytes(content)
            facts = workspace_view(ws)
            json.dumps(facts, allow_nan=False)
        path.unlink()
        workspace_view(ws)
        path.mkdir()
        workspace_view(ws)
        path.rmdir()
        path.write_bytes(whole)
    shutil.rmtree(ws / "sae")
    (ws / "sae").write_text("")
    assert saekit("info", ws).status == 0


def test_a_missing_shard_is_a_problem_that_nobody_is_told_to_delete(ws: Path) -> None:
    shard = ws / "activations" / "shard-00000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    (problem,) = workspace_view(ws)["problems"]
    assert problem["part"] == "activations/shard-00000.h5" and "saekit cache" in problem["hint"]


def test_list_finds_workspaces_and_follows_no_link(covered: Path, tmp_path: Path, saekit: Saekit) -> None:
    shutil.copytree(covered, tmp_path / "a" / "one")
    shutil.copytree(covered, tmp_path / "a" / "b" / "c" / "two")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saekit.toml").write_text("format = ")
    (tmp_path / ".hidden" / "ws").mkdir(parents=True)
    (tmp_path / ".hidden" / "ws" / "saekit.toml").write_text("")
    found = {Path(each["workspace"]).name: each for each in workspaces_view(tmp_path)["workspaces"]}
    assert set(found) == {"one", "two", "broken"}
    assert found["broken"]["state"] == "damaged" and "not valid TOML" in found["broken"]["problem"]
    assert found["one"]["bytes"] == workspace_view(covered)["sizes"]["total"]
    assert {Path(each["workspace"]).name for each in workspaces_view(tmp_path, depth=2)["workspaces"]} == {"one", "broken"}
    outcome = saekit("list", tmp_path, "--json")
    assert len(outcome.json["workspaces"]) == 3
    assert saekit("list", tmp_path / "nowhere", "--json").json["error"] == "WorkspaceError"
    with pytest.raises(SaekitError):
        workspaces_view(tmp_path / "broken" / "saekit.toml")
