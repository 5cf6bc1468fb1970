"""The command card: the side effects of steering."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.interventions import InterventionOptions
from saekit.cli.measured import MeasuredOptions
from saekit.cli.output import emit, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, Subject, open_subject

if TYPE_CHECKING:
    from saekit.tasks import Task


def card(
    place: WS_OR_MODEL,
    natural: Annotated[
        Path | None,
        typer.Option(
            "--natural",
            help="File with natural texts of the concept, one a line. [default: the neutral texts]",
            show_default=False,
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Also measure random directions and features at equal KL.")
    ] = True,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="Task whose right answers are counted without and with steering: a file with clean, answer and foil, lab:NAME "
            "or gen:NAME. May be repeated. [default: for lab, the tasks of the laboratory]",
            metavar="TASK",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Save the intervention with its card to this file.", show_default=False)
    ] = None,
    name: options.NAME = "",
    as_json: options.JSON = False,
    *,
    given: InterventionOptions,
    measured: MeasuredOptions,
    load: options.LoadOptions,
) -> None:
    """Measure what steering costs: KL and its tail, cross-entropy, perplexity, repetition, accuracy, other features, and time.

    The accuracy is that of next tokens of neutral text, and of the tasks of --task: how often the answer is likelier than the
    foil.

    The perplexity is of the continuations without their prompts, next to that of natural text. Controls are calibrated to the
    KL of the steering. A warning says where continuations are empty or repeat one word.

    Example: `saekit card pythia --feature 1042:0.5norm`

    Example: `saekit card gpt2 --data pile.txt --ref neuron:2/17:2max --when 'text ~ "French"'`

    Example: `saekit card pythia --feature 1042:0.5norm --task gen:capitals --task arithmetic.jsonl`

    Example: `saekit card pythia --intervention change.json --natural french.txt --out change.json`
    """
    quiet_libraries()
    subject = open_subject(place, load)
    rows = measured.rows(subject)
    intervention = given.resolved(subject, lambda: rows, name)
    from saekit.errors import ConfigError
    from saekit.evaluate.steering.card import CardSettings
    from saekit.evaluate.steering.card import card as measure

    texts = None
    if natural is not None:
        if not natural.is_file():
            raise ConfigError(f"There is no file {natural}.", "Give a text file with one text a line.")
        texts = tuple(line for line in natural.read_text("utf-8").splitlines() if line.strip())
    settings = CardSettings(natural=texts, controls=controls, probes=_tasks(subject, task or []))
    found = measure(subject.lm, intervention, rows, settings)
    if out is not None:
        found.on(intervention).save(out)
    facts = found.to_dict()
    if as_json:
        emit(facts)
        return
    show(facts)
    if out is not None:
        say_path("intervention with its card: ", out)


def show(facts: dict[str, Any]) -> None:
    """Print the card."""
    names = ("kl", "kl_tail", "cross_entropy_delta", "perplexity", "repetition", "distinct_2", "seconds_a_token")
    parts = {name: facts[name] for name in names} | facts["capabilities"]
    parts |= {f"collateral at {at}": each for at, each in facts["collateral"].items()}
    table(
        [
            {"measure": name, "steered": each["value"], "unsteered": each.get("unsteered"), "relative to": each["relative_to"]}
            for name, each in parts.items()
        ]
    )
    shown = ("kl", "kl_tail", "perplexity", "repetition", "distinct_2")
    if facts["controls"]:
        table([{"control": name} | {key: each.get(key) for key in shown} for name, each in facts["controls"].items()])
    if lost := [name for name, each in facts["capabilities"].items() if each.get("lost")]:
        say((f"tasks that lost more than 2 points: {', '.join(lost)}", "yellow"))
    for warning in facts["warnings"]:
        say((warning, "yellow"))


def _tasks(subject: Subject, names: list[str]) -> dict[str, Task]:
    """Tasks by name.

    Raises:
        ConfigError: a name is no task, or a task has an answer of several tokens.
    """
    from saekit.errors import ConfigError
    from saekit.locate.data import DataChoice, data_of
    from saekit.tasks import Task

    found = {}
    for name in names:
        given = data_of(subject.lm, name, DataChoice(first_token=True))
        if not isinstance(given, Task):
            raise ConfigError(f"{name} is no task with answers.", "Give records with clean, answer and foil.")
        found[name] = given
    return found
