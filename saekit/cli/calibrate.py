"""The command calibrate: the strength that costs a given KL divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.interventions import InterventionOptions
from saekit.cli.measured import MeasuredOptions
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, open_subject


def calibrate(
    place: WS_OR_MODEL,
    kl: Annotated[float, typer.Option("--kl", help="Budget: KL divergence from the unsteered model, in nats a token.")] = 0.5,
    tail: Annotated[
        bool, typer.Option("--tail", help="Apply the budget to the worst 5 % of the first 50 tokens of each text.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Save the intervention at the strength found to this file.", show_default=False)
    ] = None,
    name: options.NAME = "",
    as_json: options.JSON = False,
    *,
    given: InterventionOptions,
    measured: MeasuredOptions,
    load: options.LoadOptions,
) -> None:
    """Find the strength at which steering changes the predictions on neutral text by a given KL divergence.

    Equal strengths of two features do not disturb a model equally. At equal KL, their effects can be compared. The search starts
    from the strength given, multiplies the strengths of several features by one factor, and measures eight strengths in a batch.

    Example: `saekit calibrate pythia --feature 1042 --kl 0.5`

    Example: `saekit calibrate pythia --intervention change.json --kl 1 --tail --out softer.json`
    """
    quiet_libraries()
    subject = open_subject(place, load)
    rows = measured.rows(subject)
    intervention = given.resolved(subject, lambda: rows, name)
    from saekit.evaluate.steering import calibrate as search

    found = search.calibrate(subject.lm, intervention, kl, rows, tail=tail)
    if out is not None:
        found.intervention.save(out)
    if as_json:
        emit(found.to_dict() | ({"file": str(out)} if out is not None else {}))
        return
    for each in found.to_dict()["strengths"]:
        say((f"{each['op']} {each['target']}: {each['strength']}", "bold"))
    table([{"factor": factor, "KL of the tail" if tail else "mean KL": cost} for factor, cost in found.measured])
    say(f"KL {number(found.kl)} nats a token, worst 5 % of the early tokens {number(found.kl_tail)}; {len(rows)} neutral texts")
    if out is not None:
        say_path("intervention: ", out)
