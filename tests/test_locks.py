"""One process holds a lock, with and without locks in the file system; nothing of anybody else is changed or lost."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saekit.errors import StorageFull, WorkspaceError
from saekit.locks import Holder, lock, lock_state, record_of
from tests.kit import no_locks

BUSY = WorkspaceError("busy", "Wait.")
CODES = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


@pytest.fixture(params=["locks", *CODES])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """A file system with locks, or without: then the number of the error."""
    if request.param != "locks":

        def flock(*_: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


def test_a_lock_does_not_touch_the_target_of_a_link(file_system: object, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(WorkspaceError, match="symbolic link"), lock(tmp_path / ".lock", BUSY):
        pass
    (tmp_path / ".lock").unlink()
    record_of(tmp_path / ".lock").symlink_to(precious)
    if file_system == "locks":
        with lock(tmp_path / ".lock", BUSY):
            pass
    else:
        with pytest.raises(WorkspaceError, match="busy"), lock(tmp_path / ".lock", BUSY):
            pass
    assert precious.read_text() == "years of work"


def test_a_lock_does_not_truncate(file_system: object, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("content")
    with lock(tmp_path / ".lock", BUSY):
        pass
    assert (tmp_path / ".lock").read_text() == "content"


@pytest.mark.parametrize("name", [".lock", ""])
def test_one_holds_a_lock(file_system: object, tmp_path: Path, name: str) -> None:
    with lock(tmp_path / name, BUSY), pytest.raises(WorkspaceError, match="busy"), lock(tmp_path / name, BUSY):
        pass
    with lock(tmp_path / name, BUSY):
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_the_record_says_who_holds_it(file_system: object, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert lock_state(path) == ("free", None)
    with lock(path, BUSY):
        state, holder = lock_state(path)
        assert state == "held" and holder is not None and holder.pid == os.getpid() and holder.runs()
        with pytest.raises(WorkspaceError, match=f"process {os.getpid()} on"), lock(path, BUSY):
            pass
    assert lock_state(path) == ("free", None)


def test_an_interruption_leaves_the_record_and_an_error_does_not(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for error, kept in ((KeyboardInterrupt(), True), (StorageFull("full"), True), (WorkspaceError("no"), False)):
        with pytest.raises(type(error)), lock(path, BUSY):
            raise error
        assert record_of(path).exists() == kept
        assert lock_state(path)[0] == "free"


HOLD = """
import sys, time
from pathlib import Path
from saekit.errors import SaekitError, WorkspaceError
from saekit.locks import lock
try:
    with lock(Path(sys.argv[1]), WorkspaceError("busy")):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except SaekitError as error:
    print(error, flush=True)
"""


def hold(path: Path, seconds: float, environment: dict[str, str] | None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(params=["locks", *CODES[:3]])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str] | None:
    """The environment of processes that see a file system with locks, or a real one without them."""
    return None if request.param == "locks" else no_locks.environment(no_locks.library(), tmp_path, request.param)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_processes_take_turns_and_a_killed_one_is_replaced(environment: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    first = hold(path, 60, environment)
    assert said(first) == "held\n"
    refused = hold(path, 0, environment)
    assert f"process {first.pid} on" in said(refused)
    refused.wait(10)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    assert record_of(path).exists()
    state, holder = lock_state(path)
    assert state == "free" and holder is not None and holder.pid == first.pid
    later = hold(path, 0, environment)
    assert said(later) == "held\n"
    later.wait(10)
    assert not record_of(path).exists()


def test_many_processes_never_hold_a_stale_lock_together(environment: dict[str, str] | None, tmp_path: Path) -> None:
    """They all find the record of a killed process at once. Each that holds the lock makes a file that nobody else may have."""
    path, inside = tmp_path / ".lock", tmp_path / "inside"
    killed = hold(path, 60, environment)
    said(killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(10)
    code = f"""
import os, time
from pathlib import Path
from saekit.errors import WorkspaceError
from saekit.locks import lock
time.sleep(max(0, {time.time() + 1.5} - time.time()))
try:
    with lock(Path({str(path)!r}), WorkspaceError("busy"), wait=20):
        os.close(os.open({str(inside)!r}, os.O_CREAT | os.O_EXCL))
        time.sleep(0.02)
        os.unlink({str(inside)!r})
        print("done")
except WorkspaceError:
    print("busy")
"""
    command = [sys.executable, "-c", code]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    together = [subprocess.Popen(command, env=environment, **pipes) for _ in range(4)]
    ended = [process.communicate(timeout=60) for process in together]
    assert not [errors for _, errors in ended if "Traceback" in errors]
    assert "done\n" in {output for output, _ in ended}


def test_a_record_of_another_machine_stands(file_system: object, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    elsewhere = dataclasses.replace(Holder.here(), host="elsewhere", pid=1)
    record_of(path).write_text(json.dumps(dataclasses.asdict(elsewhere)))
    if file_system == "locks":  # the file system knows better
        assert lock_state(path)[0] == "free"
        with lock(path, BUSY):
            pass
        return
    assert lock_state(path) == ("unknown", elsewhere)
    with pytest.raises(WorkspaceError, match=r"on elsewhere .*remove the file .*\.lock-held"), lock(path, BUSY):
        pass
    assert Holder.read(record_of(path)) == elsewhere


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({}, True),
        ({"started": 1}, False),  # the number belongs to another process now
        ({"pid": 2**22 + 1}, False),
        ({"boot": "before"}, False),
        ({"boot": "before", "machine": "another"}, None),
        ({"host": "another"}, None),
    ],
)
def test_whether_a_process_still_runs(change: dict[str, object], runs: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saekit.locks._machine", lambda: "this")
    assert dataclasses.replace(Holder.here(), **change).runs() is runs  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null", '{"host": 1}'])
def test_a_damaged_record_is_no_holder(content: str, file_system: object, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    record_of(path).write_text(content)
    assert Holder.read(record_of(path)) is None
    if file_system == "locks":
        with lock(path, BUSY):
            pass
    else:
        with pytest.raises(WorkspaceError, match="remove the file"), lock(path, BUSY):
            pass
        assert record_of(path).read_text() == content
