"""Which module imports which, read from the source. For `draw_packages.py` and for the tests of the house rules."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOTS = ("saekit", "trainers", "feature_db")


def modules() -> dict[str, Path]:
    """Every module of the project, and its file."""
    files = [path for root in ROOTS for path in (ROOT / root).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports() -> dict[str, set[str]]:
    """module -> modules of the project that it imports anywhere: at the top, inside functions, and for type checking."""
    known = modules()
    return {name: _imported(path, known) for name, path in known.items()}


def package(module: str) -> str:
    """The package whose arrows are counted: `saekit.lm`, `trainers`, or a module that stands alone (`saekit.files`)."""
    return ".".join(module.split(".")[:2]) if module.startswith("saekit.") else module.split(".")[0]


def reached(arrows: Mapping[str, set[str]], start: str) -> set[str]:
    """Everything that a path of arrows leads to from `start`."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        for other in arrows.get(todo.pop(), set()) - seen:
            seen.add(other)
            todo.append(other)
    return seen


def _imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` is an arrow to the module, `from module import name` one to the module
            names |= {each if (each := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return {name for name in names if name.split(".")[0] in ROOTS}
