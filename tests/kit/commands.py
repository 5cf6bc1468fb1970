"""Commands of saekit, run in this process or in a new one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Outcome:
    """The result of a command."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


Saekit = Callable[..., Outcome]
WIDTH = "200"  # width of a terminal on which no table is cut


def command(*args: object) -> list[str]:
    """The command line of `saekit ARGS`."""
    return [sys.executable, "-m", "saekit", *map(str, args)]


def environment() -> dict[str, str]:
    """The environment of this process, with a wide terminal."""
    return {**os.environ, "COLUMNS": WIDTH}


def here(*args: object) -> Outcome:
    """Run a command in this process, in which the libraries are already loaded."""
    from saekit.cli import main

    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["saekit", *map(str, args)])
        patch.setenv("COLUMNS", WIDTH)
        try:
            main()
        except SystemExit as exit:
            status = int(exit.code or 0)
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def in_new_process(*args: object) -> Outcome:
    """Run a command as a user does."""
    done = subprocess.run(command(*args), capture_output=True, text=True, env=environment(), timeout=600)
    return Outcome(done.returncode, done.stdout, done.stderr)
