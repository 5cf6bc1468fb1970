"""Names that packages load when they are first used are listed and typed like others; messages show values to people."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from saekit.errors import shown

ROOT = Path(__file__).parents[1]
LAZY = [
    ".".join(path.relative_to(ROOT).parent.parts)
    for package in ("saekit", "trainers", "feature_db")
    for path in (ROOT / package).rglob("__init__.py")
    if any(isinstance(node, ast.ImportFrom) and node.module == "saekit.lazy" for node in ast.walk(ast.parse(path.read_text())))
]


@pytest.mark.parametrize("package", LAZY)
def test_dir_lists_what_a_package_exports_and_nothing_else(package: str) -> None:
    code = f"import {package} as p; print(sorted(set(p.__all__) ^ set(dir(p)))); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[0] == "[]", done.stderr
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = module.nonsense


def test_saekit_is_among_them() -> None:
    assert {"saekit", "trainers", "feature_db"} <= set(LAZY)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((("resid_post.12",), "resid_post.12"), (["a", 1, 0.25], "a, 1, 0.25"), (None, "nothing"), ((), "nothing")),
        *((True, "yes"), ("x y", "x y")),
    ],
)
def test_values_for_people(value: object, text: str) -> None:
    assert shown(value) == text
