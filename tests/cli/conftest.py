"""A small study of the real model, made once by the command line itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Outcome:
    """What a command did."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


Saekit = Callable[..., Outcome]
WIDTH = "200"  # of a terminal that cuts no table


def command(*args: object) -> list[str]:
    """The command line of `saekit ARGS`."""
    return [sys.executable, "-m", "saekit", *map(str, args)]


def environment() -> dict[str, str]:
    """This one, with a wide terminal."""
    return {**os.environ, "COLUMNS": WIDTH}


@pytest.fixture(scope="session")
def saekit() -> Saekit:
    """Run a command in this process, which has loaded the libraries already."""

    def run(*args: object) -> Outcome:
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

    return run


@pytest.fixture(scope="session")
def new_process() -> Saekit:
    """Run a command as a user would."""

    def run(*args: object) -> Outcome:
        done = subprocess.run(command(*args), capture_output=True, text=True, env=environment(), timeout=600)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def fit_arguments(stories_path: Path, tinystories_path: Path) -> list[object]:
    """A `fit` that takes seconds."""
    return [
        *("fit", stories_path, "--site", "resid_post.2", "--data", tinystories_path, "--latents", 512, "--k", 16),
        *("--tokens", 100_000, "--train-tokens", 400_000),
    ]


@pytest.fixture(scope="session")
def workspace(new_process: Saekit, fit_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished workspace. Tests must leave it as they found it."""
    folder = tmp_path_factory.mktemp("study") / "ws"
    outcome = new_process(*fit_arguments, "--out", folder, "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["sites"]["resid_post.2"]["fvu"] < 0.2
    return folder
