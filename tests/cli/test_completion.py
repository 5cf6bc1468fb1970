"""`--version`, and what a shell is offered: commands, options, workspaces, and what a workspace has."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from saekit.cli.completion import VARIABLE
from saekit.version import VERSION
from saekit.workspace.study import Study
from tests.kit.commands import Saekit


def offered(folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last of these words."""
    line = ["saekit", *words]
    variables = {VARIABLE: "complete_bash", "COMP_WORDS": "\n".join(line), "COMP_CWORD": str(len(line) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "saekit"], capture_output=True, text=True, cwd=folder, env={**os.environ, **variables}, check=True
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two workspaces, one of them with dictionaries."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("pythia", "studies/gpt2"):
        (folder / name).mkdir(parents=True)
        Study("lab", ("resid_post.2", "mlp_out.1"), "lab").save(folder / name)
    for place in ("resid_post.2", "resid_post.2/wide", "resid_post.2/narrow"):
        (folder / "pythia/sae" / place).mkdir(parents=True)
        (folder / "pythia/sae" / place / "cfg.json").write_text("{}")
    (folder / "pythia/reports").mkdir()
    (folder / "pythia/reports/demo.html").write_text("")
    (folder / "file").write_text("")
    return folder


def test_the_version(saekit: Saekit) -> None:
    assert saekit("--version").stdout == f"saekit {VERSION}\n"
    found = saekit("--version", "--json").json
    assert found["saekit"] == VERSION and found["torch"] == metadata.version("torch")
    outcome = saekit("--json", "search", "ws", "x")
    assert outcome.status == 2 and outcome.json["error"] == "ConfigError"
    assert saekit("--json").status == 2


def test_a_script_for_the_shell(saekit: Saekit) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "from saekit.cli import main; main()", "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert f"{VARIABLE}=complete_bash" in done.stdout
    assert "--install-completion" in saekit("--help").stdout


def test_commands_and_options(folder: Path) -> None:
    assert {"search", "show", "steer"} <= set(offered(folder, "s"))
    assert offered(folder, "lab", "co") == ["concepts"]
    assert {"--checkpoints", "--activations"} <= set(offered(folder, "clean", "--"))
    assert offered(folder, "nothing", "x") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("info", ""), ["pythia", "studies/"]),
        (("search", "py"), ["pythia"]),
        (("search", "studies/"), ["studies/gpt2"]),
        (("search", "nowhere/"), []),
        (("eval", "pythia", "--site", ""), ["resid_post.2"]),
        (("train", "pythia", "--site", "m"), ["mlp_out.1"]),
        (("search", "pythia", "x", "--name", ""), ["narrow", "wide"]),
        (("search", "pythia", "x", "--site", "mlp_out.1", "--name", ""), []),
        (("clean", "pythia", "--name", "re"), ["resid_post.2", "resid_post.2@narrow", "resid_post.2@wide", "reports/demo.html"]),
        (("eval", "file", "--site", ""), []),
        (("eval", "studies", "--name", ""), []),
    ],
)
def test_what_a_workspace_has(folder: Path, words: tuple[str, ...], expected: list[str]) -> None:
    assert set(offered(folder, *words)) >= set(expected)
    if not expected:
        assert offered(folder, *words) == []
