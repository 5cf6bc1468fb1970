"""Is locating worth it? Every recipe of saekit improve on the laboratory: located objects against the controls of each.

Example:
    python scripts/bench_improve.py --out improved
    python scripts/bench_improve.py --only safety --quick --json

The same command goes on where it was stopped. Gains are in the direction that is wanted, on held-out examples. Controls are
random objects or directions of equal size, prompting, and fine-tuning of everything; a recipe has those that apply to it.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from saekit.cli.output import table
from saekit.errors import SaekitError
from saekit.improve import Report
from saekit.improve.recipes import chosen
from saekit.improve.run import Settings, improve
from saekit.lm import LanguageModel

_RIVALS = {
    "random": ("random", "shuffled", "embeddings"),
    "prompting": ("prompting",),
    "fine-tuning": ("full_fine_tuning", "lora"),
}


def row(report: Report) -> dict[str, Any]:
    """A line of the table: the located objects, the best control of each kind, what is lost, and the time."""
    t = report.target
    line: dict[str, Any] = {"recipe": report.name, "before": t["before"], "after": t["after"], "gain": t["gain"]}
    for kind, names in _RIVALS.items():
        gains = [
            each["gain"] for name, each in report.controls.items() if name.startswith(names) and each.get("gain") is not None
        ]
        line[kind] = max(gains, default=None)
    lost = report.side_effects.get("tasks", {}).get("lost")
    line["tasks lost"] = None if lost is None else len(lost)
    line["seconds"] = report.cost["seconds"]["all"]
    line["verdict"] = report.verdict
    return line


def wins(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences: in how many recipes the located objects gain more than each kind of control."""
    said = []
    for kind in _RIVALS:
        compared = [line for line in rows if line[kind] is not None]
        ahead = sum(line["gain"] > line[kind] for line in compared)
        said.append(f"located objects gain more than {kind} in {ahead} of {len(compared)} recipes")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="all", help="scenario, paradigm or recipe")
    parser.add_argument("--out", help="folder of the reports; recipes that are there are not run again")
    parser.add_argument("--quick", action="store_true", help="few examples and steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lm = LanguageModel.load("lab", dtype="float32")
    rows = []
    for name in chosen(options.only):
        try:
            (report,) = improve(lm, name, Settings(out=options.out, quick=options.quick, seed=options.seed, progress=False))
        except SaekitError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        rows.append(row(report))
        if not options.json:
            print(f"{name}: {report.verdict}", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    shown = [{key: f"{value:+.3f}" if isinstance(value, float) else value for key, value in line.items()} for line in rows]
    table([{key: value for key, value in line.items() if key != "verdict"} for line in shown], whole="recipe")
    for sentence in wins(rows):
        print(sentence)


if __name__ == "__main__":
    main()
