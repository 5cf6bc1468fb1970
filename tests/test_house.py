"""The house rules that a machine can check: imports go down the floors, and nothing heavy loads before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.package_graph import ROOT, imports, modules, package, reached

FLOORS = {
    "saekit.builtin": 0,
    "saekit.checksums": 0,
    "saekit.collective": 0,
    "saekit.environment": 0,
    "saekit.errors": 0,
    "saekit.files": 0,
    "saekit.hashing": 0,
    "saekit.hub": 0,
    "saekit.json_files": 0,
    "saekit.lab": 0,
    "saekit.lazy": 0,
    "saekit.ledger": 0,
    "saekit.locks": 0,
    "saekit.model_options": 0,
    "saekit.names": 0,
    "saekit.notebook": 0,
    "saekit.pieces": 0,
    "saekit.plugins": 0,
    "saekit.processes": 0,
    "saekit.progress": 0,
    "saekit.tasks": 0,
    "saekit.tensor_files": 0,
    "saekit.terminal": 0,
    "saekit.trust": 0,
    "saekit.version": 0,
    "saekit.activations": 1,
    "saekit.lm": 1,
    "saekit.objects": 1,
    "saekit.sae": 1,
    "feature_db": 2,
    "trainers": 2,
    "saekit.steer": 3,
    "saekit.evaluate": 4,
    "saekit.locate": 4,
    "saekit.dictionaries": 5,
    "saekit.improve": 5,
    "saekit.study": 5,
    "saekit.views": 5,
    "saekit.workspace": 5,
    "saekit.cli": 6,
    "saekit.demo": 6,
    "saekit.report": 6,
    "saekit.serve": 6,
    "saekit.__main__": 7,
}
HEAVY = ("torch", "transformers", "sae_lens", "datasets", "wandb", "numba", "h5py", "plotly", "sklearn", "numpy")


def _floor(module: str) -> int | None:
    homes = [home for home in FLOORS if module == home or module.startswith(home + ".")]
    return FLOORS[max(homes, key=len)] if homes else None


MODULES, IMPORTS = modules(), imports()


def test_every_module_has_a_floor() -> None:
    missing = [name for name in MODULES if name != "saekit" and _floor(name) is None]
    assert not missing


def test_every_floor_has_a_module() -> None:
    assert not [home for home in FLOORS if home not in MODULES]


def test_imports_go_down_only() -> None:
    upward = [
        (name, other)
        for name, imported in IMPORTS.items()
        if name != "saekit"
        for other in imported
        if (_floor(other) or 0) > (_floor(name) or 0)
    ]
    assert not upward


def test_nothing_imports_the_front_door() -> None:
    """`saekit` itself gives names from all floors, so that a module which imports it could reach upward."""
    assert not [name for name, imported in IMPORTS.items() if "saekit" in imported]


def test_no_two_packages_import_each_other() -> None:
    arrows: dict[str, set[str]] = {}
    for name, imported in IMPORTS.items():
        if name != "saekit":
            arrows.setdefault(package(name), set()).update(map(package, imported))
    # An arrow from a package to itself is an import inside it.
    circles = sorted(name for name in arrows if any(name in reached(arrows, other) for other in arrows[name] - {name}))
    assert not circles


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
