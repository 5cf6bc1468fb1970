"""Compare lab models trained from different seeds on every task that has a goal, with the same held-out prompts.

Example:
    python scripts/train_lab.py --out lab-2 --seed 2
    python scripts/bench_lab.py lab lab-2
"""

from __future__ import annotations

import argparse
import json
import sys

from saekit import LanguageModel, lab
from saekit.cli.output import table
from saekit.errors import SaekitError
from saekit.evaluate.lab import Measurement, measure

CLOSE = 0.03
"""How far two models may be from each other."""


def compared(first: Measurement, others: list[Measurement]) -> dict[str, object]:
    """One task on all models: the values, the largest difference from the first model, and whether it is small."""
    values = [first.value, *(each.value for each in others)]
    apart = max(abs(value - first.value) for value in values)
    met = all(each.met for each in (first, *others))
    return {"task": first.task, "goal": first.goal, "values": values, "apart": apart, "close": apart < CLOSE + 1e-9, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="lab, or a folder written by scripts/train_lab.py")
    parser.add_argument("--n", type=int, default=400, help="prompts per task")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    goals = [name for name, task in lab.TASKS.items() if not task.at_least is task.at_most is task.planted is None]
    try:
        measured = [measure(LanguageModel.load(model, dtype="float32"), sorted(goals), n=options.n) for model in options.models]
    except SaekitError as error:
        sys.exit(str(error))
    rows = [compared(first, list(others)) for first, *others in zip(*measured, strict=True)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    table(
        [
            {"task": row["task"], "goal": row["goal"]}
            | {model: f"{value:.1%}" for model, value in zip(options.models, row["values"], strict=True)}  # type: ignore[call-overload]
            | {"apart": f"{row['apart']:.1%}", "close": "yes" if row["close"] else "NO", "met": "yes" if row["met"] else "NO"}
            for row in rows
        ],
        title=f"{options.n} held-out prompts per task",
    )


if __name__ == "__main__":
    main()
