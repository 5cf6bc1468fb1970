"""Cheap methods and their consensus against exhaustive ablation, for every task of the laboratory.

A section of scripts/bench_locate.py; it also runs alone. For each task and space: the share of the 10 objects of largest exact
effect that are among a method's first 10, and Spearman's correlation of its scores with the exact effects of all objects.

Example:
    python scripts/locate_agreement.py --space heads --prompts 20
    python scripts/locate_agreement.py --space features --workspace lab-study --task fact_capital
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from saekit import LanguageModel, lab
from saekit.cli.output import table
from saekit.errors import ConfigError
from saekit.locate import DataChoice, data_of, rank
from saekit.locate.agreement import CHEAP, spearman
from saekit.objects import Space
from saekit.objects.registry import spaces_of
from saekit.tasks import Ranking, Task
from saekit.workspace import Workspace

FIRST = 10


def compare(lm: LanguageModel, data: Task, spaces: Sequence[Space], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each method: recall, correlation and seconds."""
    began = time.perf_counter()
    exact = rank(lm, data, "ablation", spaces=spaces, options={"replacement": settings["replacement"]}, progress=False)
    exhaustive = time.perf_counter() - began
    began = time.perf_counter()
    agreed = rank(lm, data, "consensus", spaces=spaces, options=settings, progress=False)
    together = time.perf_counter() - began
    refs = list(dict.fromkeys([*exact, *agreed]))
    truth = torch.tensor([exact.get(ref, 0.0) for ref in refs], dtype=torch.float64)
    place = {ref: i for i, ref in enumerate(agreed)}
    for name in (*agreed.evidence, "consensus"):
        found: Mapping[Any, float] | Ranking = (
            agreed if name == "consensus" else {ref: agreed.evidence[name][i] for ref, i in place.items()}
        )
        scores = torch.tensor([found.get(ref, 0.0) for ref in refs], dtype=torch.float64)
        k = min(FIRST, len(refs))
        firsts = [set(each.abs().topk(k).indices.tolist()) for each in (scores, truth)]
        yield {
            "task": data.name,
            "method": name,
            "objects": len(refs),
            "recall": len(firsts[0] & firsts[1]) / k,
            "spearman": spearman(scores, truth) or 0.0,
            "seconds": together,
            "exhaustive": exhaustive,
        }


def measured(
    lm: LanguageModel, spaces: Sequence[Space], tasks: Sequence[str], prompts: int, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of all tasks that have answers, and of the mean over tasks."""
    rows: list[dict[str, Any]] = []
    for name in tasks:
        try:
            data = data_of(lm, f"lab:{name}", DataChoice(prompts, first_token=True))
        except ConfigError as error:
            print(f"{name} is left out: {error.what}", file=sys.stderr)
            continue
        if isinstance(data, Task) and all(data.answers):
            rows += compare(lm, data, spaces, settings)
    for name in (*CHEAP[settings["replacement"]], "consensus"):
        own = [row for row in rows if row["method"] == name]
        if own:
            means = {key: sum(row[key] for row in own) / len(own) for key in ("recall", "spearman", "seconds", "exhaustive")}
            rows.append({"task": "mean", "method": name, "objects": own[0]["objects"], **means})
    return rows


def section() -> list[dict[str, Any]]:
    """Heads of all tasks, zero ablation."""
    lm = LanguageModel.load("lab")
    return measured(lm, spaces_of(lm, "heads"), lab.TASKS, 8, {"replacement": "zero", "confirm": 8, "sample": 8})


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table(rows, title=f"Recall of the first {FIRST}, and Spearman's correlation with exhaustive ablation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="heads", help="heads, neurons, features, ...")
    parser.add_argument("--workspace", type=Path, help="workspace of lab, for features")
    parser.add_argument("--task", action="append", help="a task of the laboratory; default: all that have answers")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--confirm", type=int, default=10, help="objects of each method that consensus ablates")
    parser.add_argument("--sample", type=int, default=10, help="other objects that it ablates")
    parser.add_argument("--replacement", choices=CHEAP, default="zero", help="of exhaustive ablation and of consensus")
    parser.add_argument("--layers", type=int, nargs="+", help="of the objects; default: all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.workspace is None:
        lm = LanguageModel.load("lab")
    else:
        workspace = Workspace.open(options.workspace)
        workspace.attach_all()
        lm = workspace.lm
    settings = {name: getattr(options, name) for name in ("replacement", "confirm", "sample")}
    spaces = spaces_of(lm, options.space, options.layers)
    rows = measured(lm, spaces, options.task or lab.TASKS, options.prompts, settings)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)


if __name__ == "__main__":
    main()
