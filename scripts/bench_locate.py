"""Benchmarks of locating, section by section. Each section is a script of its own with `section()` and `show(rows)`.

Examples:
    python scripts/bench_locate.py
    python scripts/bench_locate.py --section speed --json
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SECTIONS = {
    "agreement": "scripts.locate_agreement",
    "circuits": "scripts.locate_circuits",
    "graphs": "scripts.locate_graphs",
    "induction": "scripts.locate_induction",
    "speed": "scripts.locate_speed",
    "stories": "scripts.locate_stories",
}
"""Name -> module. A new section is one file and one row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=SECTIONS, help="run this section only; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the rows of all sections as JSON")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for name in asked.section or SECTIONS:
        module = importlib.import_module(SECTIONS[name])
        found[name] = module.section()
        if not asked.json:
            print(f"== {name}")
            module.show(found[name])
    if asked.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
