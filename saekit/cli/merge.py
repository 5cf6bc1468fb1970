"""The command merge: the features of two workspaces in one, or several models in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.merge_models import ModelOptions, is_model, merge_models, split_weight
from saekit.cli.output import emit, say, say_path
from saekit.errors import ConfigError

_OUT = "Folder to write; it must not exist. For models also FILE.safetensors: the change of the base's weights."


def merge(
    places: Annotated[
        list[str],
        typer.Argument(
            help="Two workspaces or database files; or models, as NAME or NAME:WEIGHT.", metavar="PLACE", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help=_OUT, show_default=False)],
    as_json: options.JSON = False,
    *,
    models: ModelOptions,
) -> None:
    """Merge two feature databases into a new workspace, or models into a new model. What is merged is not changed.

    Workspaces: dictionaries, labels, lists and notes of both. A dictionary that both have keeps the rows of the first and gets
    the labels by people and models of both: `saekit merge mine colleagues --out ours`

    Models (with --base or --method, or where folders of models are given) were fine-tuned from one base. A negative weight makes
    the result forget a skill: `math:-1`. Methods and their options: arithmetic (scale); ties (density 0.2, scale); dare and
    dare_ties (drop 0.5, scale, seed); sens (scale, temperature 0.1) with --data for each model; aim (omega 0.4, scale) and acm
    (t 1, scale) with one --data; linear; slerp (t 0.5).

    Example: `saekit merge math french:0.7 --base llama --method ties --out both`
    """
    if models.given or any(is_model(split_weight(place)[0]) for place in places):
        merge_models(places, out, models, as_json)
        return
    if len(places) != 2:
        raise ConfigError(
            f"Features of two workspaces are merged, and {len(places)} places are given.",
            "Merge two, then the result with the third. For models, give --base.",
        )
    _merge_features(Path(places[0]), Path(places[1]), out, as_json)


def _merge_features(first: Path, second: Path, out: Path, as_json: bool) -> None:
    from saekit.workspace.databases import merge as merge_databases

    merged = merge_databases(first, second, out)
    if as_json:
        emit({"folder": str(out.absolute()), **merged.to_dict()})
        return
    for what, found in (("kept", merged.kept), ("added", merged.added), ("in both", merged.same)):
        if found:
            say((f"{what:<9}", "bold"), ", ".join(found))
    say(f"{merged.labels} labels and notes and {merged.entries} list entries came from {second}.")
    for sentence in merged.conflicts:
        say((sentence, "yellow"))
    say_path("Written to ", out)
