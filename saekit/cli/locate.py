"""The command locate: which objects are responsible for a behaviour."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, quiet_libraries, say, say_path, table
from saekit.cli.subject import open_subject
from saekit.cli.values import count
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.tasks import Ranking
    from saekit.workspace.workspace import Workspace

_OF_DICTIONARIES = {"features", "error"}
PLACE = Annotated[
    str | None,
    typer.Argument(
        help="Folder of a workspace, whose dictionaries are attached; or hub name or local folder of a causal language model, or "
        "lab: the built-in one.",
        show_default=False,
        metavar="[WS_OR_MODEL]",
        autocompletion=completion.workspaces,
    ),
]
METRICS = "logit_difference, probability, log_probability, kl, cross_entropy, or module:function of a Python function of logits."
TASK = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="File of prompts (jsonl, json, yaml, csv) with clean, corrupted, answer and foil; lab:NAME of the laboratory; or "
        "gen:NAME for any tokenizer: indirect_object, greater_than, induction, pronouns, capitals. A file of positive and "
        "negative texts is a contrast, one of texts with labels is labelled.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class PromptOptions:
    """Which prompts a method is given."""

    prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            help="Number of prompts. [default: 50 of lab: and gen:, all of a file]",
            parser=count(1),
            metavar="COUNT",
            show_default=False,
        ),
    ] = None
    seed: options.SEED = 0
    split: options.SPLIT = "heldout"
    first_token: Annotated[
        bool, typer.Option("--first-token", help="Judge the first token of each answer alone, where answers have several.")
    ] = False


@dataclass(frozen=True)
class MethodOptions:
    """Which objects are ranked, and how."""

    method: Annotated[str, typer.Option("--method", help="Name of the method; `saekit locate --list` shows all.")] = (
        "attribution_patching"
    )
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            help="Objects to rank: features, error, neurons, heads, q, k, v, patterns, residual, states, blocks, positions or "
            "weights. May be repeated. [default: features and error where dictionaries are attached, else heads and neurons]",
            show_default=False,
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Layers of these objects: 3, 0-5 or 0,2,4. [default: all]", show_default=False),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help=f"{METRICS} [default: logit_difference]",
            show_default=False,
        ),
    ] = None
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            help="each: one score at each position; last; the name of a span of the task; or positions such as 3,5. "
            "[default: all positions together]",
            show_default=False,
        ),
    ] = None
    option: options.METHOD_OPTIONS = None


@dataclass(frozen=True)
class ResultOptions:
    """What becomes of the ranking."""

    top: Annotated[int, typer.Option("-n", "--top", help="Objects to show.", parser=count(1), metavar="COUNT")] = 20
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with heat maps to this file.", show_default=False)] = (
        None
    )
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            help="Name of the ranking in the workspace, or without a workspace a file. [default: METHOD_TASK_SPACE in the "
            "workspace; not kept without one]",
            show_default=False,
        ),
    ] = None


def locate(
    place: PLACE = None,
    task: TASK = None,
    listing: Annotated[bool, typer.Option("--list", help="List the methods with their data and options.")] = False,
    as_json: options.JSON = False,
    *,
    prompts: PromptOptions,
    method: MethodOptions,
    result: ResultOptions,
    load: options.LoadOptions,
) -> None:
    """Rank the objects of a model by their responsibility for a behaviour.

    A positive score says that an object supports the behaviour. The interval is the 95 % bootstrap interval over the prompts. The
    exact effect is known for objects that were ablated one by one: `--method consensus` runs several cheap methods, and ablates
    the objects that any of them puts first.

    A workspace gives its model with its dictionaries attached, and keeps the ranking in rankings/. A model name works too.

    Example: `saekit locate lab --task lab:indirect_object --space heads`

    Example: `saekit locate pythia --task prompts.jsonl --method consensus --html page.html`

    Example: `saekit locate gpt2 --task gen:greater_than --space states --positions each --method patching`

    Example: `saekit locate --list`
    """
    if listing:
        _list(as_json)
        return
    if place is None:
        raise ConfigError("locate needs a workspace or a model.", "Give one, or --list for the methods.")
    quiet_libraries()
    from saekit.locate.data import DataChoice, data_of
    from saekit.locate.methods import rank
    from saekit.locate.registry import METHODS

    row = METHODS.find(method.method)
    own = _pairs(method.option or ())
    subject = open_subject(place, load)
    lm, ws = subject.lm, subject.workspace
    if ws is not None and (not method.space or _OF_DICTIONARIES & set(method.space)):
        ws.attach_all()
    choice = DataChoice(prompts.prompts, prompts.seed, prompts.split, prompts.first_token)  # type: ignore[arg-type]
    if task is None and "none" not in row.needs.split(" or "):
        raise ConfigError(f"The method {method.method} needs data of the kind {row.needs}.", "Give it with --task.")
    data = None if task is None else data_of(lm, task, choice)
    ranking = rank(
        lm,
        data,
        method.method,
        spaces=method.space,
        layers=_layers(method.layers, lm.n_layers),
        metric=method.metric,
        positions=_positions(method.positions),
        options=own,
    )
    named = Path(task or "none").stem
    kept = _keep(ws, result.save, ranking, "-".join([method.method, named, *(method.space or ())]))
    if result.html is not None:
        from saekit.report.ranking import write_ranking

        write_ranking(ranking, result.html, max(result.top, 50))
    _show(ranking, result, as_json, kept)


def _pairs(given: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Options as name and text."""
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--option {text!r} has no value.", "Write it as NAME=VALUE, like --option steps=20.")
        pairs[name.strip()] = value.strip()
    return pairs


def _layers(text: str | None, n_layers: int) -> list[int] | None:
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        ends = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= ends[0] <= ends[1] < n_layers:
            raise ConfigError(f"The model has no layers {text!r}.", f"Write 0, 0-{n_layers - 1} or 0,{n_layers - 1}.")
        found += range(ends[0], ends[1] + 1)
    return sorted(set(found))


def _positions(text: str | None) -> str | list[int] | None:
    """Positions as a list where they are numbers."""
    if text is None or not re.fullmatch(r"[\d, ]+", text):
        return text
    return [int(part) for part in text.replace(" ", "").split(",") if part]


def _keep(ws: Workspace | None, name: str | None, ranking: Ranking, default: str) -> Path | None:
    """Keep the ranking; returns its file, or None where it is not kept."""
    if ws is None:
        if name is None:
            return None
        path = Path(name if name.endswith(".json") else f"{name}.json")
        ranking.save(path)
        return path
    from saekit.workspace.access import optional
    from saekit.workspace.rankings import file_of

    chosen = name or re.sub(r"[^A-Za-z0-9_]+", "_", default).strip("_")
    path = file_of(ws, chosen)
    with optional(str(path)) as kept:
        ws.keep_ranking(chosen, ranking)
    return path if kept.done else None


def _show(ranking: Ranking, result: ResultOptions, as_json: bool, kept: Path | None) -> None:
    from saekit.views.ranking import ranking_rows

    rows = ranking_rows(ranking.top(result.top))
    if as_json:
        emit([{name: value for name, value in row.items() if name != "evidence"} for row in rows])
        return
    intervals, confirmed = bool(ranking.intervals), bool(ranking.confirmed)
    shown: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {"object": row["ref"], "score": row["score"]}
        line |= {"low": row["low"], "high": row["high"]} if intervals else {}
        line |= {"exact effect": "" if row["confirmed"] is None else f"{row['confirmed']:.4g}"} if confirmed else {}
        shown.append(line | row.get("evidence", {}))
    facts = ranking.obtained
    said = ", ".join(str(facts[name]) for name in ("task", "metric") if facts.get(name))
    table(shown, title=f"{facts['method']}: {said}" if said else str(facts["method"]))
    prompts = f" on {facts['n']} examples" if facts.get("n") else ""
    say((f"the first {len(rows)} of {len(ranking):,} objects{prompts}; positive: supports the behaviour", "dim"))
    for each in facts.get("agreement") or ():
        agreed = "constant" if each["spearman"] is None else f"{each['spearman']:.2f}"
        say((f"{' and '.join(each['methods'])}: rank correlation {agreed}, {each['shared']:.0%} of the first shared", "dim"))
    if kept is not None:
        say_path("kept: ", kept)
    if result.html is not None:
        say_path("page: ", result.html)


def _list(as_json: bool) -> None:
    """Print the methods."""
    from saekit.locate.registry import METHODS

    rows: list[dict[str, Any]] = [
        {
            "method": name,
            "data": row.needs,
            "scores": row.summary,
            "options": {option: _default(each.default) for option, each in row.options().items()},
        }
        for name, row in METHODS.items()
    ]
    if as_json:
        emit(rows)
        return
    options_of = {row["method"]: " ".join(f"{name}={value}" for name, value in row["options"].items()) for row in rows}
    table([row | {"options": options_of[row["method"]]} for row in rows], whole="method")


def _default(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
