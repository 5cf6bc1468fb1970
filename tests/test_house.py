"""The house rules that a machine can check: imports go down the floors, and nothing heavy loads before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "saekit.builtin": 0,
    "saekit.checksums": 0,
    "saekit.errors": 0,
    "saekit.files": 0,
    "saekit.json_files": 0,
    "saekit.lazy": 0,
    "saekit.ledger": 0,
    "saekit.plugins": 0,
    "saekit.progress": 0,
    "saekit.environment": 0,
    "saekit.terminal": 0,
    "saekit.lab": 0,
    "saekit.lm": 1,
    "saekit.sae": 1,
    "saekit.activations": 1,
    "saekit.objects": 1,
    "trainers": 2,
    "feature_db": 2,
    "saekit.steer": 3,
    "saekit.evaluate": 4,
    "saekit.workspace": 5,
    "saekit.views": 5,
    "saekit.report": 6,
    "saekit.demo": 6,
    "saekit.cli": 6,
    "saekit.__main__": 7,
    "saekit.dictionaries": 5,
    "saekit.study": 5,
    "saekit.names": 0,
    "saekit.tasks": 0,
    "saekit.processes": 0,
    "saekit.hashing": 0,
    "saekit.version": 0,
    "saekit.statistics": 0,
    "saekit.locate": 4,
}
HEAVY = ("torch", "transformers", "sae_lens", "datasets", "wandb", "numba", "h5py", "plotly", "sklearn", "numpy")


def _floor(module: str) -> int | None:
    homes = [home for home in FLOORS if module == home or module.startswith(home + ".")]
    return FLOORS[max(homes, key=len)] if homes else None


def _modules() -> list[tuple[str, Path]]:
    files = [path for package in ("saekit", "trainers", "feature_db") for path in (ROOT / package).rglob("*.py")]
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in files]


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_floor() -> None:
    missing = [name for name, _ in _modules() if name != "saekit" and _floor(name) is None]
    assert not missing


def test_imports_go_down_only() -> None:
    upward = [
        (name, other)
        for name, path in _modules()
        if name != "saekit"
        for other in _imported(path)
        if (_floor(other) or 0) > (_floor(name) or 0)
    ]
    assert not upward


@pytest.mark.parametrize(
    "statement",
    [
        "import saekit",
        "import saekit.lab, saekit.builtin",
        "import saekit.cli.run, saekit.cli.app, saekit.cli.fit, saekit.cli.train, saekit.cli.eval, saekit.workspace.workspace",
        "import saekit.cli.demo, saekit.cli.lab_info, saekit.cli.report, saekit.cli.steer",
    ],
)
def test_nothing_heavy_is_imported_early(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from saekit.cli import main
sys.argv = ["saekit", "--help"]
try:
    main()
except SystemExit:
    print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stderr.strip() == "[]"
    assert "fit" in result.stdout
