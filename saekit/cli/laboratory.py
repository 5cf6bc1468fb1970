"""Commands of the built-in laboratory: lab info, lab sample, lab concepts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.builtin import NAME, is_lab, model_folder
from saekit.cli import options
from saekit.cli.app import Command, app
from saekit.cli.output import console, emit, print_section, quiet_libraries, say, table

if TYPE_CHECKING:
    from saekit.lab import Document

lab_app = typer.Typer(
    help="The built-in language model and corpus whose truth is known.\n\nExample: `saekit lab info`", no_args_is_help=True
)
app.add_typer(lab_app, name="lab")

_SPLIT = Annotated[str, typer.Option(help="train, or heldout: cases and phrasings that training never saw.")]
_COLOURS = ("yellow", "cyan", "green", "magenta", "red", "blue", "bright_yellow", "bright_cyan", "bright_green", "bright_magenta")


@lab_app.command(cls=Command)
def info(
    model: Annotated[str, typer.Option(help="The model to measure: lab, or a folder that scripts/train_lab.py made.")] = NAME,
    n: Annotated[int, typer.Option("-n", "--n", help="Prompts of each task.", min=1)] = 200,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Measure every task on the model now.")] = True,
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """The laboratory's data sheet: what was planted and how strongly, and how well the model does it, measured then and there.

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

        measured = measure_tasks(LanguageModel.load(model, dtype="float32"), n=n, seed=seed)
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
    """Lists and tables without their brackets; names of one value are told together."""
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


@lab_app.command(cls=Command)
def sample(
    genre: Annotated[
        str | None, typer.Option(help="Only of this genre. [default: all, as in training]", show_default=False)
    ] = None,
    split: _SPLIT = "train",
    n: Annotated[int, typer.Option("-n", "--n", help="How many documents.", min=1)] = 3,
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """Documents of the corpus with the concepts of their words.

    Example: `saekit lab sample --genre facts --split heldout`
    """
    from saekit import lab

    found = list(lab.documents(genre=genre, split=split, seed=seed, n=n))  # type: ignore[arg-type]
    if as_json:
        emit([{**asdict(each), "spans": [span._asdict() for span in each.spans]} for each in found])
        return
    for each in found:
        _print_document(each)


def _print_document(document: Document) -> None:
    from rich.text import Text

    from saekit import lab

    out = console()
    text = Text(document.text)
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for start, end, concept in document.spans:
        texts[concept][document.text[start:end]] = None
    styles: dict[str, str] = {}
    for concept in texts:
        colour = _COLOURS[len(styles) % len(_COLOURS)]
        styles[concept] = f"italic {colour}" if lab.CONCEPTS[concept].kind == "region" else f"black on {colour}"
    # Long stretches first, so that the words in them keep their own colours.
    for start, end, concept in sorted(document.spans, key=lambda span: span.start - span.end):
        text.stylize(styles[concept], start, end)
    out.rule(Text(f"{document.genre}, {document.split}", style="dim"), align="left")
    out.print(text)
    for concept, spans in texts.items():
        whole = lab.CONCEPTS[concept].kind == "region"
        shown = f"{len(spans)} stretches" if whole and len(spans) > 1 else "a stretch" if whole else ", ".join(spans)
        say("  ", (f" {concept} ", styles[concept]), "  ", (shown, "dim"))


@lab_app.command(cls=Command)
def concepts(
    workspace: options.WORKSPACE,
    site: options.TRAINED_SITES = None,
    documents: Annotated[int, typer.Option(help="Labelled documents to measure on.", min=2)] = 4000,
    split: _SPLIT = "heldout",
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """Which of the known concepts the dictionaries of a workspace recover in a single feature.

    AUC: of the best feature for the concept's tokens against all others, on documents that did not choose the feature. AP: its
    average precision; a feature that says nothing has the base rate, the share of the tokens that are the concept's. Words: the
    AUC of the rule "is one of the concept's tokens", which knows no context. Same words: AUC of the best feature
    against other occurrences of these tokens only. In context: AUC of the best feature between occurrences of one and the same
    token, where knowing the token gives 0.5. A concept is recovered in context if both are high. A dash: the words are the
    concept, or there is too little to compare.

    Example: `saekit lab concepts lab-resid_post.2`
    """
    quiet_libraries()
    from saekit import lab
    from saekit.evaluate.concepts.recovery import concept_recovery
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    sites = ws.dictionaries.chosen(site)
    labelled = list(lab.documents(split=split, seed=seed, n=documents))  # type: ignore[arg-type]
    found = [concept_recovery(ws.lm, ws.sae(each), each, labelled) for each in sites]
    if as_json:
        emit([each.to_dict() for each in found])
        return
    for each in found:
        print_section(each.section)
