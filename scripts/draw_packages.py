"""Draw which package imports which, as a Mermaid graph in docs/architecture.md. An arrow that follows from others is left out::

python scripts/draw_packages.py
python scripts/draw_packages.py --check  # fails where the picture is out of date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
ROOTS = ("saekit", "trainers", "feature_db")
_BLOCK = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def arrows() -> dict[str, set[str]]:
    """package -> packages that any of its files imports: at the top, inside a function, or for type checking."""
    files = [path for root in ROOTS for path in (ROOT / root).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets = [full if (full := f"{node.module}.{a.name}") in names else node.module for a in node.names]
            found[_package(name)] |= {_package(target) for target in targets if target.split(".")[0] in ROOTS}
    return {one: {other for other in others if _drawn(other) and other != one} for one, others in found.items() if _drawn(one)}


def picture() -> str:
    """The graph without arrows that a path of others implies."""
    graph = arrows()

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in graph.get(todo.pop(), set()) - seen:
                seen.add(other)
                todo.append(other)
        return seen

    lines = ["```mermaid", "graph TD"]
    for one in sorted(graph):
        implied = set().union(*(reached(other) for other in graph[one]), set())
        lines += [f"  {_label(one)} --> {_label(other)}" for other in sorted(graph[one] - implied)]
    return "\n".join([*lines, "```"])


def _package(module: str) -> str:
    return "/".join(module.split(".")[:2]) if module.startswith("saekit.") else module.split(".")[0]


def _drawn(package: str) -> bool:
    """Packages, not the single modules of the lowest floor."""
    return (ROOT / package).is_dir() and package != "saekit"


def _label(package: str) -> str:
    return f"{package.replace('/', '_')}[{package}]"


def main() -> None:
    """Write the picture, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the picture is out of date")
    check = parser.parse_args().check
    old = PAGE.read_text()
    new = _BLOCK.sub(lambda _: picture(), old)
    if check and new != old:
        sys.exit("docs/architecture.md is out of date: run python scripts/draw_packages.py")
    if not check:
        PAGE.write_text(new)


if __name__ == "__main__":
    main()
