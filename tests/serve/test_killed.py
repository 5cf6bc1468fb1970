"""A real server process: what it acknowledged is there after kill -9 at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit

FEATURE = "/w/study/feature:resid_post.2"


@contextmanager
def server(workspace: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [sys.executable, "-m", "saekit", "serve", str(workspace), "--no-open", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            while not said.endswith("\n}\n"):
                said += process.stdout.readline()
            yield process, json.loads(said)["url"].rstrip("/")
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)


def test_what_was_acknowledged_survives_a_kill(own_workspace: Path, saekit: Saekit) -> None:
    kept: list[tuple[str, int, str]] = []
    for moment in (3, 8):
        with server(own_workspace) as (process, address):

            def write(address: str = address, moment: int = moment) -> None:
                with httpx.Client(base_url=address, headers={"origin": address}) as client:
                    for n in range(10_000):
                        what, field = (("label", "text"), ("note", "text"), ("list", "name"))[n % 3]
                        text = f"{what}-{moment}-{n}"
                        try:
                            answer = client.post(f"{FEATURE}/{n % 40}/{what}", data={field: text})
                        except httpx.HTTPError:
                            return  # the server was killed
                        assert answer.status_code == 303, answer.text
                        kept.append((what, n % 40, text))

            writer = threading.Thread(target=write)
            writer.start()
            start = len(kept)
            while len(kept) < start + moment:
                time.sleep(0.002)
            time.sleep(0.003 * moment)  # in the middle of a request
            os.kill(process.pid, signal.SIGKILL)
            writer.join(30)
    assert len(kept) >= 11 and {what for what, _, _ in kept} == {"label", "note", "list"}
    with Workspace.open(own_workspace).database() as database:
        for what, number, text in kept:
            ref = f"feature:resid_post.2/{number}"
            if what == "label":
                assert text in [each.text for each in database.feature(ref).labels]
            elif what == "note":
                assert text in [each.text for each in database.notes(ref)]
            else:
                assert ref in map(str, database.lists()[text])
    assert saekit("verify", own_workspace, "--json").status == 0
