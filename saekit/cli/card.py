"""The command card: the side effects of steering."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.interventions import InterventionOptions
from saekit.cli.measured import MeasuredOptions
from saekit.cli.output import emit, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, open_subject


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

    The perplexity is of the continuations without their prompts, next to that of natural text. Controls are calibrated to the
    KL of the steering. A warning says where continuations are empty or repeat one word.

    Example: `saekit card pythia --feature 1042:0.5norm`

    Example: `saekit card gpt2 --data pile.txt --ref neuron:2/17:2max --when 'text ~ "French"'`

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
    found = measure(subject.lm, intervention, rows, CardSettings(natural=texts, controls=controls))
    if out is not None:
        found.on(intervention).save(out)
    facts = found.to_dict()
    if as_json:
        emit(facts)
        return
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
    table([{"control": name} | {key: each.get(key) for key in shown} for name, each in facts["controls"].items()])
    for warning in facts["warnings"]:
        say((warning, "yellow"))
    if out is not None:
        say_path("intervention with its card: ", out)
