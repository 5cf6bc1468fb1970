"""The documentation is of the commands that there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saekit.cli.app import build
from saekit.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "commands.md").read_text()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_is_documented(name: str) -> None:
    section = PAGE.partition(f"\n## saekit {name}\n")[2].partition("\n## ")[0]
    assert "Example: `saekit" in section
    for parameter in build(name).params:
        if not parameter.hidden:
            flags = [*parameter.opts, *parameter.secondary_opts] if parameter.opts[0].startswith("-") else [parameter.metavar]
            assert not [flag for flag in flags if f"`{flag}`" not in section]


def test_the_reference_of_the_commands_is_up_to_date() -> None:
    command = [sys.executable, "scripts/write_command_docs.py", "--check"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, f"{done.stderr}: run python scripts/write_command_docs.py"
