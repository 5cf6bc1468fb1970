"""The command import: features and labels that other tools wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say


def import_features(
    workspace: Annotated[
        Path, typer.Argument(help="Workspace; made if it does not exist.", metavar="WORKSPACE", show_default=False)
    ],
    source: Annotated[Path, typer.Argument(help="Folder that the other tool wrote.", metavar="SOURCE", show_default=False)],
    format: Annotated[
        str | None,
        typer.Option("--format", help="neuronpedia (bulk export) or delphi. [default: found by the content]", show_default=False),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Site of the dictionary, where the files do not say it.", show_default=False)
    ] = None,
    name: Annotated[
        str,
        typer.Option("--name", help="Name of the dictionary here. [default: the one in the files]", show_default=False),
    ] = "",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Hub name or folder of the model, for a new workspace.", show_default=False),
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Import features, examples and labels that another tool wrote.

    Where a dictionary of the workspace is the one that the files are of, their labels are added to it, and nothing is replaced.
    Else the dictionary is added, and searched like others, without its weights or activations.

    Example: `saekit import pythia downloads/pythia-70m-deduped/3-res-sm`

    Example: `saekit import gpt2 downloads/gpt2-small/6-res-jb --model gpt2`
    """
    quiet_libraries()
    from saekit.workspace.exchange import import_into

    done = import_into(workspace, source, format=format, site=site, name=name, model=model)
    if as_json:
        emit([each.to_dict() for each in done])
        return
    for each in done:
        if each.new:
            counts = f"{each.features:,} features, {each.examples:,} examples, {each.labels:,} labels"
            say((each.dictionary, "bold"), f": added with {counts}")
        else:
            say((each.dictionary, "bold"), f": {each.labels:,} labels were added")
        for sentence in [*each.remarks, *(f"Left out: {count:,} x {reason}." for reason, count in each.left_out.items())]:
            say((sentence, "yellow"))
