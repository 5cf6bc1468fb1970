"""Draw which package imports which, as a Mermaid graph in docs/architecture.md. An arrow that follows from others is left out::

python scripts/draw_packages.py
python scripts/draw_packages.py --check  # fails where the picture is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.package_graph import ROOT, imports, package, reached

PAGE = ROOT / "docs" / "architecture.md"
_BLOCK = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def arrows() -> dict[str, set[str]]:
    """package -> packages that any of its files imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, imported in imports().items():
        found[package(name)] |= set(map(package, imported)) - {package(name)}
    return {one: set(filter(_drawn, others)) for one, others in found.items() if _drawn(one)}


def picture() -> str:
    """The graph without arrows that a path of others implies."""
    graph = arrows()
    lines = ["```mermaid", "graph TD"]
    for one in sorted(graph):
        implied = set().union(*(reached(graph, other) for other in graph[one]), set())
        lines += [f"  {_label(one)} --> {_label(other)}" for other in sorted(graph[one] - implied)]
    return "\n".join([*lines, "```"])


def _drawn(name: str) -> bool:
    """Packages, not the single modules of the lowest floor."""
    return (ROOT / name.replace(".", "/")).is_dir() and name != "saekit"


def _label(name: str) -> str:
    return f"{name.replace('.', '_')}[{name.replace('.', '/')}]"


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
