"""The command export: features in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, say_path, table


def export(
    workspace: options.WORKSPACE,
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.", metavar="OUT", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="neuronpedia (its bulk export), neuronpedia-upload (batches of 128 features), saedashboard, delphi (all cached "
            "activations) or parquet (all tables).",
        ),
    ] = "neuronpedia",
    site: options.TRAINED_SITES = None,
    name: options.NAME = "",
    features: options.FEATURES = None,
    model_id: Annotated[
        str | None,
        typer.Option("--model-id", help="What the other tool calls the model. [default: from its name]", show_default=False),
    ] = None,
    set_name: Annotated[
        str | None,
        typer.Option(
            "--set",
            help="What the other tool calls the set of dictionaries, as res-jb. [default: from the site and the name]",
            show_default=False,
        ),
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Write features in the format of another tool. The folder appears when all of it is written.

    Example: `saekit export pythia out --format neuronpedia`

    Example: `saekit export pythia out --format saedashboard --site resid_post.3 --features 12,40-50`
    """
    quiet_libraries()
    from saekit.names.address import Address
    from saekit.names.site_map import SiteMap
    from saekit.workspace.exchange import export as write
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    sites = [str(Address(SiteMap.parse(place), called)) for place, called in ws.dictionaries.chosen(site, name)] if name else site
    written = write(ws, out, format, sites=sites or (), features=features or (), model=model_id, set=set_name)
    if as_json:
        emit({"folder": str(out.absolute()), "format": format, "written": [each.to_dict() for each in written]})
        return
    table([{"dictionary": each.dictionary, "features": each.features, "files": each.files} for each in written])
    for each in written:
        for reason, count in each.left_out.items():
            say((f"{count} features of {each.dictionary} are left out: {reason}.", "yellow"))
    say_path("Written to ", out)
