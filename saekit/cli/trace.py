"""The command trace: where a model recalls a subject, by causal tracing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.locate import METRICS, TASK, PromptOptions
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, open_subject
from saekit.cli.values import count
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.locate.causal import Trace
    from saekit.tasks import Task

_WIDE = 9
"""Most columns of a table; of wider heat maps, the cells of largest magnitude are listed."""


HTML = Annotated[Path | None, typer.Option("--html", help="Write a page with heat maps to this file.", show_default=False)]


@dataclass(frozen=True)
class TextOptions:
    """A prompt of its own, in place of a task."""

    subject: Annotated[
        str | None,
        typer.Option("--subject", help="With a text: the part of it that gets noise.", show_default=False),
    ] = None
    answer: Annotated[
        str | None,
        typer.Option(
            "--answer",
            help="With a text: what follows it. [default: the most likely token]",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class TraceOptions:
    """What is restored, and the noise."""

    restore: Annotated[
        list[str] | None,
        typer.Option(
            "--restore",
            help="states: the residual stream after a layer; mlp or attention: outputs of blocks. May be repeated. "
            "[default: states]",
            show_default=False,
        ),
    ] = None
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            help="Layers that are restored together. [default: 1 for states, 10 for mlp and attention]",
            parser=count(1),
            metavar="COUNT",
            show_default=False,
        ),
    ] = None
    noise: Annotated[
        float, typer.Option("--noise", help="Size of the noise, in standard deviations of the embeddings of the subject.")
    ] = 3.0
    draws: Annotated[int, typer.Option("--draws", help="Draws of noise for each prompt.", parser=count(1), metavar="COUNT")] = 10
    span: Annotated[
        str | None,
        typer.Option(
            "--span",
            help="Span of the task that gets noise. [default: subject, or the tokens that differ from the corrupted prompt]",
            show_default=False,
        ),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help="Columns: position, or role relative to the subject. [default: position where prompts are aligned]",
            show_default=False,
        ),
    ] = None
    metric: Annotated[str | None, typer.Option("--metric", help=f"{METRICS} [default: probability]", show_default=False)] = None


def trace(
    place: WS_OR_MODEL,
    text: Annotated[str | None, typer.Argument(help="A prompt instead of a task.", metavar="[TEXT]", show_default=False)] = None,
    task: TASK = None,
    html: HTML = None,
    as_json: options.JSON = False,
    *,
    own: TextOptions,
    prompts: PromptOptions,
    tracing: TraceOptions,
    load: options.LoadOptions,
) -> None:
    """Show at which layers and tokens a model recalls a subject.

    Noise on the embeddings of the subject lowers the probability of the answer. Then the clean state of one layer and token at a
    time is put back: the indirect effect is how much of the probability returns (causal tracing, Meng et al. 2022).

    Example: `saekit trace lab --task lab:fact_capital --prompts 10`

    Example: `saekit trace gpt2 "The Space Needle is in downtown" --subject "The Space Needle" --answer Seattle --html trace.html`
    """
    if (text is None) == (task is None):
        raise ConfigError("trace needs either a text or a task.", "Give a text with --subject, or --task.")
    if text is None and own != TextOptions():
        raise ConfigError("--subject and --answer belong to a text.", "Leave them out, or give a text in place of --task.")
    quiet_libraries()
    from saekit.locate.causal import Noise
    from saekit.locate.causal import trace as traced
    from saekit.locate.methods import named_metric

    lm = open_subject(place, load).lm
    data = _task(lm, task, prompts) if text is None else _own(lm, text, own)
    noise = Noise(tracing.noise, tracing.draws, prompts.seed, tracing.span)
    settings: dict[str, Any] = {
        "window": tracing.window,
        "by": tracing.columns,
        "metric": named_metric(tracing.metric),
        "noise": noise,
    }
    kinds = list(dict.fromkeys(tracing.restore or ("states",)))
    found = [traced(lm, data, restore=kind, **settings) for kind in kinds]
    if html is not None:
        from saekit.report.trace import write_trace

        write_trace(found, html)
    if as_json:
        emit([each.to_dict() for each in found])
        return
    for each in found:
        _show(each)
    if html is not None:
        say_path("page: ", html)


def _task(lm: LanguageModel, name: str | None, prompts: PromptOptions) -> Task:
    from saekit.locate.data import DataChoice, data_of
    from saekit.tasks import Task

    choice = DataChoice(prompts.prompts, prompts.seed, prompts.split, prompts.first_token)  # type: ignore[arg-type]
    data = data_of(lm, str(name), choice)
    if not isinstance(data, Task):
        raise ConfigError(f"{name} is no task: it has no answers.", "Give prompts with answers.")
    return data


def _own(lm: LanguageModel, text: str, own: TextOptions) -> Task:
    from saekit.locate.causal import prompt_task

    if own.subject is None:
        raise ConfigError("The text has no subject.", "Name the part that gets noise with --subject.")
    return prompt_task(lm, text, own.subject, own.answer)


def _show(found: Trace) -> None:
    title = f"indirect effect of restoring {found.restored}"
    effects = [[float(f"{value:.2g}") for value in row] for row in found.effects_LC.tolist()]
    if len(found.columns) <= _WIDE:
        rows = [{"layer": str(layer), **dict(zip(found.columns, row))} for layer, row in zip(found.layers, effects)]
        table(list(reversed(rows)), title=title)
    else:
        cells: list[dict[str, Any]] = [
            {"layer": str(layer), "token": column, "indirect effect": value}
            for layer, row in zip(found.layers, effects)
            for column, value in zip(found.columns, row)
            if value == value
        ]
        table(sorted(cells, key=lambda cell: -abs(cell["indirect effect"]))[:10], title=f"{title}, the 10 largest")
    facts = found.ranking.obtained
    measured = str(facts["metric"]).replace("_", " ")
    said = f"{measured}: clean {number(found.clean)}, with noise on the subject {number(found.noised)}"
    prompts = "1 prompt" if facts["n"] == 1 else f"{facts['n']} prompts"
    say((f"{said}; {prompts}, {facts['samples']} draws of noise, window {facts['window']}", "dim"))
