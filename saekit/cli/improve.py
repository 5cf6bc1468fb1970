"""The command improve: the scenarios of the survey, each from locating objects to a measured improvement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, print_section, quiet_libraries, say_path, table
from saekit.cli.subject import contexts, open_subject
from saekit.cli.values import count

if TYPE_CHECKING:
    from saekit.improve.run import Settings

_NEUTRAL_TEXTS, _NEUTRAL_TOKENS = 32, 128
SCENARIO = Annotated[
    str | None,
    typer.Argument(
        help="SCENARIO, SCENARIO.PARADIGM or SCENARIO.PARADIGM.RECIPE, as `saekit improve --list` shows them; or all.",
        show_default=False,
        metavar="SCENARIO",
    ),
]
PLACE = Annotated[
    str,
    typer.Argument(
        help="Folder of a workspace, whose dictionaries are attached; or hub name or local folder of a causal language model, or "
        "lab: the built-in one.",
        metavar="WS_OR_MODEL",
        autocompletion=completion.workspaces,
    ),
]


@dataclass(frozen=True)
class TrialOptions:
    """What recipes are run on."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="File with the data of a recipe; NAME=FILE where it takes several. Half of the examples are held out. "
            "--example writes example files. [default: the laboratory's data, for its model]",
            metavar="[NAME=]FILE",
            show_default=False,
        ),
    ] = None
    prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            help="Prompts of the laboratory, as many for fitting as for measuring. [default: as the recipe says]",
            parser=count(4),
            metavar="COUNT",
            show_default=False,
        ),
    ] = None
    neutral: Annotated[
        list[str] | None,
        typer.Option(
            "--neutral",
            help="Neutral texts for side effects. May be repeated. [default: the data of the workspace, or the laboratory's]",
            show_default=False,
        ),
    ] = None
    seed: options.SEED = 0
    quick: Annotated[bool, typer.Option("--quick", help="Few examples and steps, to see whether a recipe runs.")] = False
    force: Annotated[bool, typer.Option("--force", help="Measure again what --out already has.")] = False


@dataclass(frozen=True)
class ResultOptions:
    """Where the reports go."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for reports, rankings, interventions and weight deltas. The same command goes on where it was stopped. "
            "[default: improve in the workspace; not kept without one]",
            show_default=False,
        ),
    ] = None
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with all reports to this file.", show_default=False)
    ] = None


def improve(
    scenario: SCENARIO = None,
    place: PLACE = "lab",
    listing: Annotated[bool, typer.Option("--list", help="List the recipes with their data.")] = False,
    example: Annotated[
        Path | None,
        typer.Option("--example", help="Write an example file of each input to this folder, and stop.", show_default=False),
    ] = None,
    as_json: options.JSON = False,
    *,
    trial: TrialOptions,
    result: ResultOptions,
    load: options.LoadOptions,
) -> None:
    """Locate the objects behind a behaviour, change them, and measure what improves and what it costs.

    A recipe locates on one half of the data and measures on the other. Its report gives the target before and after with 95 %
    intervals, the same for controls, side effects on neutral text and on the laboratory's tasks, and a sentence whether it is
    worth it. The model itself is never changed: interventions and weight deltas are saved with the report.

    Example: `saekit improve persona.components`

    Example: `saekit improve safety.directions gpt2 --data refusals.jsonl --out improved`
    """
    quiet_libraries()
    if listing or scenario is None:
        _list(as_json)
        return
    from saekit.improve.run import improve as run
    from saekit.improve.run import write_examples

    if example is not None:
        written = write_examples(scenario, example)
        if as_json:
            emit([str(path) for path in written])
            return
        for path in written:
            say_path("example: ", path)
        return
    subject = open_subject(place, load)
    if subject.workspace is not None:
        subject.workspace.attach_all()
    kept = result.out or (None if subject.workspace is None else subject.workspace.path / "improve")
    neutral = None
    if trial.neutral or subject.workspace is not None:
        neutral = contexts(subject, trial.neutral, texts=_NEUTRAL_TEXTS, context=_NEUTRAL_TOKENS)
    reports = run(subject.lm, scenario, _settings(trial, kept, neutral, progress=not as_json))
    if result.html is not None:
        from saekit.report.improve import write_improvements

        write_improvements(reports, result.html)
    if as_json:
        emit([report.to_dict() for report in reports])
        return
    for report in reports:
        print_section(report.section)
    if kept is not None:
        say_path("kept: ", kept)
    if result.html is not None:
        say_path("page: ", result.html)


def _settings(trial: TrialOptions, out: Path | None, neutral: Any, *, progress: bool) -> Settings:
    from saekit.errors import ConfigError
    from saekit.improve.run import Settings

    files: dict[str, str | Path] = {}
    for text in trial.data or ():
        name, equals, file = text.partition("=")
        key, path = (name.strip(), file) if equals and not Path(text).exists() else ("", text)
        if not Path(path).is_file():
            raise ConfigError(f"There is no file {path}.", "`saekit improve NAME --example FOLDER` writes example files.")
        if key in files:
            raise ConfigError(f"--data is given twice for {key or 'the first input'}.", "Write NAME=FILE, each name once.")
        files[key] = path
    return Settings(files, out, neutral, trial.seed, trial.prompts, trial.quick, trial.force, progress)


def _list(as_json: bool) -> None:
    """Print the recipes."""
    from saekit.improve.recipes import RECIPES, chosen

    rows: list[dict[str, Any]] = [
        {
            "recipe": name,
            "summary": RECIPES[name].summary,
            "data": {key: each.kind for key, each in RECIPES[name].inputs.items()},
            "papers": list(RECIPES[name].papers),
        }
        for name in chosen("all")
    ]
    if as_json:
        emit(rows)
        return
    shown = [
        {"recipe": row["recipe"], "what it shows": row["summary"], "data": " ".join(f"{k}={v}" for k, v in row["data"].items())}
        for row in rows
    ]
    table(shown, whole="recipe")
