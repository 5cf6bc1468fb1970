"""A workspace on a file system without locks: everything works, one command writes at a time, no sound file is called damaged."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saekit.locks import record_of
from saekit.workspace import Workspace
from tests.kit import no_locks
from tests.kit.contents import contents

CODES = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]
ROOT = Path(__file__).parents[2]

USE = """
import json, logging, sys
from pathlib import Path
from saekit.workspace import Workspace
from tests.kit.commands import here
ws = sys.argv[1]
said = {}
for name, words in {
    "verify": ["verify", ws], "info": ["info", ws], "search": ["search", ws, "dog"], "show": ["show", ws, "resid_post.2/3"],
    "index": ["index", ws, "--site", "resid_post.2"], "eval": ["eval", ws, "--site", "resid_post.2"],
    "again": ["verify", ws], "clean": ["clean", ws, "--checkpoints", "--yes"], "at last": ["verify", ws],
}.items():
    outcome = here(*words, "--json")
    said[name] = [outcome.status, outcome.json if outcome.stdout else None, outcome.stderr]
with Workspace.open(ws).database() as database:
    database.search("dog")
    database.set_label("feature:resid_post.2/3", "mine")
    said["label"] = database.feature("feature:resid_post.2/3").label
    database.set_list("good", ["feature:resid_post.2/3", "feature:resid_post.2/4"])
    said["list"] = [str(ref) for ref in database.lists()["good"]]
said["problems"] = Workspace.open(ws).check(progress=False).checks()
print(json.dumps(said))
"""


def run(code: str, ws: Path, number: int, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = no_locks.environment(no_locks.library(), ws.parent, number) | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run([sys.executable, "-c", code, str(ws)], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("number", CODES)
def test_every_command_works(ws: Path, number: int) -> None:
    import json

    done = run(USE, ws, number, HDF5_USE_FILE_LOCKING="TRUE")  # which asks HDF5 for locks that are not there
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for name in ("verify", "info", "search", "show", "index", "eval", "again", "clean", "at last"):
        status, facts, stderr = said[name]
        assert status == 0, (name, facts, stderr)
    assert "has no locks" in said["index"][2] and ".lock-held is the lock instead" in said["index"][2]
    assert (said["label"], said["list"]) == ("mine", ["feature:resid_post.2/3", "feature:resid_post.2/4"])
    assert not any("damaged" in found for found in said["problems"].values()), said["problems"]
    assert not list(ws.rglob("*-held")) and not list(ws.rglob("*.partial"))
    with Workspace.open(ws).database() as database:  # on a file system with locks again
        assert database.feature("feature:resid_post.2/3").label == "mine"
        assert all(remark.startswith("mlp_in.2-") for remark in database.verify())  # which version 0.1.0 indexed


def test_a_build_gives_the_same_database(ws: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "with" / "ws"
    shutil.copytree(ws, copy)
    code = (
        "import sys; from saekit.workspace import Workspace; ws = Workspace.open(sys.argv[1]); ws.index('resid_post.2').close()"
    )
    assert run(code, ws, errno.ENOSYS).returncode == 0
    Workspace.open(copy).index("resid_post.2", progress=False).close()
    one, other = (contents(folder / "features.sqlite") for folder in (ws, copy))
    one.pop("file", None), other.pop("file", None)  # times of change
    assert one == other


HOLD = """
import sys, time
from saekit.workspace import Workspace
with Workspace.open(sys.argv[1]).writing():
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("number", CODES[:1])
def test_one_command_writes_and_a_killed_one_does_not_block(ws: Path, number: int) -> None:
    environment = no_locks.environment(no_locks.library(), ws.parent, number) | {"PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(ws)], stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    choose = [sys.executable, "-m", "saekit", "choose", str(ws), "jump", "--keep", "before", "--json"]
    refused = subprocess.run(choose, capture_output=True, text=True, env=environment)
    assert refused.returncode == 2 and f"process {holder.pid} on" in refused.stdout
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(10)
    assert record_of(ws / ".lock").exists()
    done = subprocess.run(choose, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not record_of(ws / ".lock").exists()


def test_a_killed_change_of_the_database_leaves_the_one_before(ws: Path) -> None:
    code = """
import os, sys
from saekit import files
from saekit.workspace import Workspace
with Workspace.open(sys.argv[1]).database() as database:
    files.publish = lambda *_, **__: os.kill(os.getpid(), 9)
    database.set_label("feature:resid_post.2/3", "lost")
"""
    before = contents(ws / "features.sqlite")
    assert run(code, ws, errno.ENOSYS).returncode == -signal.SIGKILL
    assert contents(ws / "features.sqlite") == before
    again = code.replace("files.publish = lambda *_, **__: os.kill(os.getpid(), 9)\n", "pass\n").replace("lost", "kept")
    done = run(again, ws, errno.ENOSYS)
    assert done.returncode == 0, done.stderr
    with Workspace.open(ws).database() as database:
        assert database.feature("feature:resid_post.2/3").label == "kept"
