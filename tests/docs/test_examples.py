"""Every example in the documentation runs: `console` blocks as commands, `python` blocks as code, page by page from the top."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.timeout(900)  # a page is a session of a user, with training
STUDY = "study"  # the workspace that the first block of docs/training.md makes and the other pages use


def _blocks(page: Path) -> list[tuple[str, str]]:
    return _BLOCK.findall(page.read_text())


def _commands(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def _is_plain(command: str) -> bool:
    """Whether a line is one saekit command, which no shell has to take apart."""
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
    return command.startswith("saekit ") and not re.search(r"[|<>&;$*?`\\]", unquoted)


def _run_here(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a plain command in this process: most of the time of a short command goes into loading the libraries."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        done = commands.here(*shlex.split(command)[1:])
    assert done.status == 0, f"$ {command}\n{done.stdout}{done.stderr}"


def _run(command: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = f'saekit() {{ {shlex.quote(sys.executable)} -m saekit "$@"; }}; {command}'
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace that the first block of docs/training.md makes."""
    folder = tmp_path_factory.mktemp("docs")
    (command,) = _commands(_blocks(ROOT / "docs" / "training.md")[0][1])
    _run(command, folder)
    return folder / STUDY


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page)], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(study, tmp_path / STUDY)
    code = []
    for kind, block in _blocks(page):
        if kind == "console":
            for command in _commands(block):
                if _is_plain(command):
                    _run_here(command, tmp_path, monkeypatch)
                else:
                    _run(command, tmp_path)
        else:
            code.append(block)
    if code:  # the blocks of a page share their names
        (tmp_path / "page.py").write_text("\n".join(code))
        _run(f"{shlex.quote(sys.executable)} page.py", tmp_path)


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken
