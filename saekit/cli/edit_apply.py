"""The commands `edit apply`, `edit revert` and `edit show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import edit, options
from saekit.cli.output import emit, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, open_subject


def apply(
    place: WS_OR_MODEL,
    edits: edit.EDITS,
    out: edit.OUT_FOLDER,
    scale: edit.SCALE = 1.0,
    as_json: options.JSON = False,
    *,
    load: options.LoadOptions,
) -> None:
    """Write an edited model as a folder that transformers loads.

    The folder also keeps the unedited tensors, so that `saekit edit revert` can take the edits back bit for bit.

    Example: `saekit edit apply lab edit.safetensors --out edited`
    """
    quiet_libraries()
    from saekit.steer.weights.folders import write_edited

    deltas = edit.read_edits(edits, scale)
    lm = open_subject(place, load).lm
    write_edited(lm, deltas, out)
    if as_json:
        emit({"folder": str(out), "edits": [edit.described(each) for each in deltas]})
        return
    say_path("edited model: ", out)


def revert(
    folder: Annotated[Path, typer.Argument(help="Folder that `saekit edit apply` wrote.", metavar="FOLDER", show_default=False)],
    out: edit.OUT_FOLDER,
    as_json: options.JSON = False,
    *,
    load: options.LoadOptions,
) -> None:
    """Write the unedited model of an edited one, with every bit of its weights as before.

    Example: `saekit edit revert edited --out original`
    """
    quiet_libraries()
    from saekit.steer.weights.folders import edits_in, write_reverted

    head = edits_in(folder)
    # ./ : a folder that is called lab is not the built-in model.
    lm = open_subject(str(folder.absolute()), load).lm
    write_reverted(lm, folder, out)
    if as_json:
        emit({"folder": str(out), "model": head["model"], "edits": [each.get("method") for each in head["edits"]]})
        return
    say_path("unedited model: ", out)


def show(
    edits: edit.EDITS,
    facts: Annotated[
        Path | None,
        typer.Option("--facts", help="Measure these facts on the model of --on, with all the edits.", show_default=False),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option("--on", help="Workspace or model to check the edits against, and to measure on.", show_default=False),
    ] = None,
    as_json: options.JSON = False,
    *,
    load: options.LoadOptions,
) -> None:
    """Show what edit files change, how they were made, and with --on and --facts what they do.

    Example: `saekit edit show edit.safetensors`

    Example: `saekit edit show edit.safetensors --on lab --facts facts.jsonl`
    """
    from saekit.errors import ConfigError

    if facts is not None and of is None:
        raise ConfigError("--facts needs a model.", "Give --on WS_OR_MODEL.")
    quiet_libraries()
    deltas = edit.read_edits(edits)
    report = None
    if of is not None:
        lm = open_subject(of, load).lm
        for each in deltas:
            each.check(lm)
        if facts is not None:
            from saekit.evaluate.steering.edits import evaluate_edit
            from saekit.steer.weights import read_facts

            report = evaluate_edit(lm, read_facts(facts), *deltas, progress=not as_json)
    if as_json:
        shown = [
            {"file": str(path), "parameters": edit.described(each), "facts": dict(each.facts)}
            for path, each in zip(edits, deltas)
        ]
        emit({**({} if report is None else report.to_dict()), "edits": shown})
        return
    for path, each in zip(edits, deltas):
        facts_of = each.facts
        say(
            (
                f"{path}: {facts_of.get('method', 'delta')} on {facts_of.get('model', 'a model')}, {facts_of.get('date', '')}",
                "bold",
            )
        )
        table(edit.described(each))
        for fact in facts_of.get("facts", [])[:20]:
            say(f"{fact['prompt']} {fact['target']}")
    if report is not None:
        edit.show_report(report)
