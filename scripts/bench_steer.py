"""Benchmarks of steering, section by section. Each section is a module `scripts/steer_NAME.py` with two functions:

    section(quick: bool) -> list of rows, each a dict of JSON values; quick takes less data, to see that it runs
    show(rows) -> None: print them, each figure with the ratio that a reader compares

Examples:
    python scripts/bench_steer.py
    python scripts/bench_steer.py --only concepts --quick
    python scripts/bench_steer.py --only stories --json > stories.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SECTIONS: dict[str, str] = {
    "concepts": "scripts.steer_concepts",
    "stories": "scripts.steer_stories",
    "edits": "scripts.steer_edits",
    "overhead": "scripts.steer_overhead",
    "tuning": "scripts.steer_tuning",
    "merging": "scripts.steer_merging",
    "stitching": "scripts.steer_stitching",
}
"""Name -> module. A new section is one file and one row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="run this section only; may be repeated")
    parser.add_argument("--quick", action="store_true", help="less data: shows that a section runs, not what it measures")
    parser.add_argument("--json", action="store_true", help="print the rows of all sections as JSON")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for name in asked.only or SECTIONS:
        module = importlib.import_module(SECTIONS[name])
        found[name] = module.section(quick=asked.quick)
        if not asked.json:
            print(f"== {name}", flush=True)
            module.show(found[name])
    if asked.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
