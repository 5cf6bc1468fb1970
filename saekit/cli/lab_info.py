"""The command lab info: the laboratory's data sheet."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from saekit.builtin import NAME, is_lab, model_folder
from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, table
from saekit.cli.values import count


def info(
    model: Annotated[str, typer.Option("--model", help="Hub name or local folder of a model, or lab: the built-in one.")] = NAME,
    prompts: Annotated[int, typer.Option("--prompts", help="Prompts of each task.", parser=count(1), metavar="COUNT")] = 200,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Measure the model on every task.")] = True,
    seed: options.SEED = 0,
    as_json: options.JSON = False,
    *,
    load: options.LoadOptions,
) -> None:
    """Describe the laboratory: what was planted in its corpus, how often, and how well the model has learnt it, measured now.

    Example: `saekit lab info --json`
    """
    from saekit import lab
    from saekit.evaluate.lab import measure as measure_tasks
    from saekit.evaluate.lab import model_facts

    facts = model_facts(model_folder(model) if is_lab(model) else Path(model))
    total = sum(genre.weight for genre in lab.GENRES.values())
    genres: list[dict[str, Any]] = [
        {"genre": name, "share": genre.weight / total, "description": genre.description, "planted": genre.planted}
        for name, genre in sorted(lab.GENRES.items())
    ]
    measured = []
    if measure:
        quiet_libraries()
        from saekit.lm import LanguageModel

        measured = measure_tasks(
            LanguageModel.load(model, load.model_options(), dtype=load.dtype or "float32"), n=prompts, seed=seed
        )
    if as_json:
        tasks = [asdict(each) for each in measured]
        emit({"model": {"name": model, **facts}, "genres": genres, "concepts": len(lab.CONCEPTS), "tasks": tasks})
        return
    training = facts.pop("training", {})
    sizes = ", ".join(f"{value:,} {name}" for name, value in facts.items() if isinstance(value, int))
    say((model, "bold"), f"  {facts['architecture']}: {sizes}")
    if training:
        said = {"tokens": training.get("tokens"), **{key: training.get("plan", {}).get(key) for key in ("seed",)}}
        say("trained: ", ", ".join(f"{name} {value:,}" for name, value in said.items() if value is not None))
    say(f"{len(lab.CONCEPTS)} concepts, {len(lab.TASKS)} tasks, {len(lab.CONTRASTS)} contrasts\n")
    table([{**genre, "share": f"{genre['share']:.1%}", "planted": _planted(genre["planted"])} for genre in genres])
    if measured:
        say("on held-out prompts; intervals of 95 %")
        table([_row(asdict(each)) for each in measured])
        missed = [each.task for each in measured if each.met is False]
        say("every goal is met" if not missed else f"not met: {', '.join(missed)}")


def _planted(planted: dict[str, object]) -> str:
    return "; ".join(f"{name}: {_shown(value)}" for name, value in planted.items())


def _shown(value: object) -> str:
    """Format lists and tables without brackets. Names with the same value are grouped."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if not isinstance(value, dict):
        return str(value)
    names: dict[str, list[str]] = defaultdict(list)
    for name, each in value.items():
        names[_shown(each)].append(str(name))
    return ", ".join(
        f"{' '.join(some)} {each}" if len(some) == 1 else f"({', '.join(some)}) {each}" for each, some in names.items()
    )


def _row(each: dict[str, Any]) -> dict[str, Any]:
    met = {True: "yes", False: "NO", None: ""}[each["met"]]
    interval = f"{each['low']:.1%} – {each['high']:.1%}"
    return {
        "genre": each["genre"],
        "task": each["task"],
        "n": each["n"],
        "measured": f"{each['value']:.1%}",
        "interval": interval,
        "goal": each["goal"],
        "met": met,
        "what": each["description"],
    }
