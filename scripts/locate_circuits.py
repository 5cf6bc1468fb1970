"""Circuits of the laboratory: how faithful they are at 5 % of the edges, and how long scoring and running take.

A section of scripts/bench_locate.py; it also runs alone.

Example:
    python scripts/locate_circuits.py --prompts 48
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from saekit import LanguageModel, lab
from saekit.cli.output import table
from saekit.lab.induction_model import induction_path, prompts
from saekit.locate.circuits import EdgeAblator, Scoring, curve, faithfulness, greedy, prune, refine, score_edges
from saekit.tasks import Task

TASKS = ("indirect_object", "induction", "greater_than", "fact_capital", "fact_language", "fact_sport")
SHARE = 0.05
GOAL = 0.85


def measure(lm: LanguageModel, name: str, count: int, steps: int) -> dict[str, Any]:
    """One task: faithfulness of circuits of at most 5 % of the edges, on their own and on other prompts."""
    both = lab.task(name, 2 * count)
    task, other = both[:count], both[count:]
    ablator, judge = EdgeAblator(lm, task), EdgeAblator(lm, other)
    row: dict[str, Any] = {"task": name, "prompts": count}
    for method in ("eap", "eap_ig_inputs", "eap_ig_activations"):
        begun = time.perf_counter()
        scores = score_edges(lm, task, Scoring(method, steps), progress=False)
        row[f"{method}_seconds"] = time.perf_counter() - begun
        n = int(SHARE * scores.wiring.n_edges)
        circuit = greedy(scores, n, "highest")
        row[method], row[f"{method}_other"] = (faithfulness(each, [circuit])[0] for each in (ablator, judge))
        if method == "eap_ig_inputs":
            by_method = curve(ablator, scores, by="highest", how="greedy")
            row |= {"edges": len(circuit), "cpr": by_method.cpr}
            row["cmd"] = curve(ablator, scores, how="greedy").cmd
            refined = (
                refine(ablator, greedy(scores, 2 * n, "highest"), n, shrink=0.75, progress=False) if row[method] < GOAL else None
            )
            row["refined"] = row["refined_other"] = None
            if refined is not None:
                row["refined"], row["refined_other"] = (faithfulness(each, [refined])[0] for each in (ablator, judge))
    return row | _by_position(lm, task, other, steps)


def _by_position(lm: LanguageModel, task: Task, other: Task, steps: int) -> dict[str, Any]:
    """Circuits of 5 % of the edges of every position."""
    if task.clean_BT.shape[1] != other.clean_BT.shape[1]:
        other = task
    scores = score_edges(lm, task, Scoring("eap_ig_inputs", steps), positions="each", progress=False)
    n = int(SHARE * scores.wiring.n_edges * len(scores.spans))
    circuit = greedy(scores, n, "highest")
    runners = (EdgeAblator(lm, each, positions="each") for each in (task, other))
    found = [faithfulness(runner, [circuit])[0] for runner in runners]
    return {"each_position": found[0], "each_position_other": found[1]}


def measure_acdc(n: int = 32) -> dict[str, Any]:
    """ACDC on the model that continues repeated sequences: its time and its edges."""
    lm = LanguageModel.load(induction_path(), dtype="float32")
    task = induction_task(n)
    ablator = EdgeAblator(lm, task)
    begun = time.perf_counter()
    found = prune(ablator, 0.2, progress=False)
    seconds = time.perf_counter() - begun
    edges = list(map(str, found.circuit.edges))
    f = faithfulness(ablator, [found.circuit])[0]
    return {"edges": edges, "of": ablator.wiring.n_edges, "runs": found.runs, "seconds": seconds, "faithfulness": f}


def induction_task(n: int, length: int = 12, seed: int = 0) -> Task:
    """Repeated sequences up to a token of the second copy, which the model continues.

    In the first copy of a corrupted prompt, that token has changed places with another, so that another token follows it. Only
    which token precedes which differs, which the previous-token head writes and the induction head looks for.
    """
    rng = Random(seed)
    rows: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
    for row in prompts(n, length, seed).rows:
        one, two = rng.sample(range(1, length, 2), 2)  # odd places, so that neither follows the other
        clean = row[: length + 1 + one]
        corrupted = [*clean]
        corrupted[one], corrupted[two] = clean[two], clean[one]
        rows.append((tuple(clean), tuple(corrupted), (clean[one + 1],), (clean[two + 1],)))
    clean_rows, corrupted_rows, answers, foils = zip(*rows)
    return Task("repeated", clean_rows, corrupted_rows, answers, foils)


def section(count: int = 48, steps: int = 10) -> list[dict[str, Any]]:
    """The rows of the section."""
    lm = LanguageModel.load("lab", dtype="float32")
    rows = []
    for name in TASKS:
        rows.append(measure(lm, name, count, steps))
        print(f"{name}: {rows[-1]['eap_ig_inputs']:.3f}", file=sys.stderr, flush=True)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the section."""
    table(
        [
            {
                "task": row["task"],
                "edges": row["edges"],
                **{
                    name: f"{row[name]:.3f} / {row[f'{name}_other']:.3f}"
                    for name in ("eap", "eap_ig_inputs", "eap_ig_activations")
                },
                "refined": "" if row["refined"] is None else f"{row['refined']:.3f} / {row['refined_other']:.3f}",
                "each position": f"{row['each_position']:.3f} / {row['each_position_other']:.3f}",
                "CPR": f"{row['cpr']:.3f}",
                "CMD": f"{row['cmd']:.3f}",
            }
            for row in rows
        ],
        title=f"faithfulness at {SHARE:.0%} of the edges, on the prompts of the circuit / on other prompts (goal: {GOAL})",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48, help="prompts per task")
    parser.add_argument("--steps", type=int, default=10, help="steps of integrated gradients")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, acdc = section(options.prompts, options.steps), measure_acdc()
    if options.json:
        print(json.dumps({"circuits": rows, "acdc": acdc}, indent=1))
        return
    show(rows)
    print(
        f"ACDC, induction model: {len(acdc['edges'])} of {acdc['of']} edges, faithfulness {acdc['faithfulness']:.3f}, "
        f"{acdc['runs']} runs in {acdc['seconds']:.1f} s: {', '.join(acdc['edges'])}"
    )


if __name__ == "__main__":
    main()
